"""A verifier of your own: a quantity with its unit, `Answer: 1.5 km`, that is right in any unit and to one per cent.

    python examples/own_verifier.py                                        # puts it to the contract test
    bash scripts/train.sh srpo.verifier.name=examples/own_verifier.py:verify ...

A verifier is a pure function of a response and the ground truth. It runs in a process of its own under limits of time and
memory, so it may raise or hang: that is a failed verification and no failed run. docs/verifiers.md has the rest.
"""

import re

from srpo_recipe.verify import Verdict

# unit -> (what it measures, its size in the unit that stands first)
UNITS = {
    "m": ("length", 1.0), "cm": ("length", 0.01), "km": ("length", 1000.0),
    "s": ("time", 1.0), "min": ("time", 60.0), "h": ("time", 3600.0),
    "kg": ("mass", 1.0), "g": ("mass", 0.001),
}  # fmt: skip
QUANTITY = re.compile(r"(?P<number>[-+]?\d{1,15}(?:\.\d{1,15})?(?:e[-+]?\d{1,2})?) ?(?P<unit>[a-z]+)")
TOLERANCE = 0.01


def quantity(text: str) -> tuple[str, float] | None:
    """(what is measured, how much of it in the first unit); None for a text that is no quantity."""
    found = QUANTITY.fullmatch(text.strip())
    if found is None or found["unit"] not in UNITS:
        return None
    kind, size = UNITS[found["unit"]]
    return kind, float(found["number"]) * size


def verify(response: str, ground_truth: str) -> Verdict:
    """The last line of the response is the answer. Raises ValueError for a ground truth that is no quantity."""
    right = quantity(ground_truth)
    if right is None:
        raise ValueError(f"the ground truth {ground_truth!r} is no quantity with a unit of {', '.join(UNITS)}")
    line = response.rstrip().rpartition("\n")[2]
    found = quantity(line.removeprefix("Answer:")) if line.startswith("Answer:") else None
    if found is None:
        return Verdict(0.0, None, False, "The last line has to be the answer, as in `Answer: 3.5 cm`.")
    # Equal answers have equal text, so that a majority vote can count them.
    answer = f"{found[0]} {found[1]:.3g}"
    if found[0] != right[0]:
        return Verdict(0.0, answer, True, "The unit measures something else.")
    if abs(found[1] - right[1]) > TOLERANCE * abs(right[1]):
        return Verdict(0.0, answer, True, "The unit is one of the right kind; the amount is wrong.")
    return Verdict(1.0, answer, True)


# Correct responses with their ground truths, for the contract test.
EXAMPLES = [
    ("It is 1500 m away.\nAnswer: 1500 m", "1.5 km"),
    ("Answer: 90 s", "1.5 min"),
    ("250 g and a half of it\nAnswer: 0.375 kg\n", "375 g"),
]


def main() -> None:
    from srpo_recipe.verify.contract import violations
    from srpo_recipe.verify.pool import VerifierPool

    with VerifierPool(f"{__file__}:verify", "strict", time_limit=5.0, processes=2, memory_mb=2048) as pool:
        found = violations(lambda response, truth: pool.submit(response, truth).result(), EXAMPLES)
    print("\n".join(found) or f"{len(EXAMPLES)} examples: the contract is kept")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
