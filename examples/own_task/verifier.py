"""Right is a solution that begins with the largest term and ends in the sum. The ground truth is a solution that is right."""

import re

from srpo_recipe.verify import Verdict

SOLUTION = re.compile(r"(?P<first>\d+)\+[\d+=]*#(?P<total>\d+)")


def verify(response: str, ground_truth: str) -> Verdict:
    right, found = SOLUTION.fullmatch(ground_truth), SOLUTION.fullmatch(response.strip())
    if right is None:
        raise ValueError(f"the ground truth {ground_truth!r} is no solution")
    if found is None:
        return Verdict(0.0, None, False, "A solution is a chain of running sums, then # and the answer.")
    answer = f"{found['first']} {found['total']}"
    if found["first"] != right["first"]:
        return Verdict(0.0, answer, True, "The solution does not begin with the largest term.")
    if found["total"] != right["total"]:
        return Verdict(0.0, answer, True, "The sum is wrong.")
    return Verdict(1.0, answer, True)
