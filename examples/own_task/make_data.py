"""Writes questions.csv, additions whose solution has to begin with the largest term, and correct.jsonl, right solutions to
try the verifier on. Your own table takes their place.

    python examples/own_task/make_data.py outputs/own_task
"""

import csv
import json
import random
import sys
from pathlib import Path


def main(folder: Path, rows: int = 2000) -> None:
    generator = random.Random(0)
    problems: dict[tuple[int, ...], str] = {}  # by the sorted terms, so that none is another one reordered
    while len(problems) < rows:
        terms = [generator.randint(10, 49) for _ in range(4)]
        problems.setdefault(tuple(sorted(terms, reverse=True)), "+".join(map(str, terms)) + "=?")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "question", "solution"])
        table.writerows(
            [number, question, solution(terms)] for number, (terms, question) in enumerate(problems.items())
        )
    with (folder / "correct.jsonl").open("w") as file:
        for terms in list(problems)[:20]:
            file.write(json.dumps({"response": solution(terms), "ground_truth": solution(terms)}) + "\n")
    print(f"{folder}: questions.csv with {rows} rows, correct.jsonl with 20")


def solution(terms: tuple[int, ...]) -> str:
    """49+20=69+15=84+10=94#94 for the terms 49, 20, 15 and 10."""
    total = terms[0]
    text = str(total)
    for term in terms[1:]:
        total += term
        text += f"+{term}={total}"
    return f"{text}#{total}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
