"""The manifest: what was prepared, from what, and what is worth knowing of it. Nothing in it depends on time or machine."""

import hashlib
import json
from array import array
from collections import Counter
from typing import Any

from srpo_recipe.data.formats import Example
from srpo_recipe.machine import installed_version

# More distinct answers than this are counted, and the most frequent ones named.
ANSWERS_NAMED = 12
MOST_FREQUENT = 5


def answer_label(verifier: str, truth: str) -> str:
    """What the distribution of answers counts: the answer, or for tool use the number of calls."""
    if verifier != "tool_use":
        return truth
    calls = len(json.loads(truth))
    return f"{calls} call{'s' * (calls != 1)}"


def fingerprint(messages: list[dict[str, str]]) -> bytes:
    """Equal for equal prompts."""
    return hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()


class SplitSummary:
    """Counts over the examples of one split, as they are written."""

    def __init__(self, verifier: str):
        self.verifier = verifier
        self.answers: Counter[str] = Counter()
        self.lengths = array("l")
        self.places: dict[bytes, list[tuple[int, str]]] = {}
        self.rows = self.rejected = self.too_long = 0

    def add(self, example: Example, row: int, tokens: int | None) -> None:
        """Count an example that is written. row: its number in the source."""
        self.rows += 1
        self.answers[answer_label(self.verifier, example.ground_truth)] += 1
        self.places.setdefault(fingerprint(example.messages), []).append((row, example.id))
        if tokens is not None:
            self.lengths.append(tokens)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "rejected": self.rejected,
            "repeated_prompts": self.rows - len(self.places),
            "answers": distribution(self.answers),
            "prompt_tokens": quantiles(sorted(self.lengths)) if self.lengths else None,
            "over_the_prompt_limit": self.too_long,
        }


def distribution(answers: Counter[str]) -> dict[str, Any]:
    """answer -> rows, in the order of the answers; of many only how many they are, and the most frequent."""
    if len(answers) <= ANSWERS_NAMED:
        return dict(sorted(answers.items()))
    frequent = sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT]
    return {"distinct": len(answers), "most_frequent": dict(frequent)}


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Of sorted lengths, at least one. A quantile q is the smallest length that a share q of the rows does not exceed."""

    def at(share: float) -> int:
        return lengths[max(0, -int(-share * len(lengths) // 1) - 1)]

    return {"min": lengths[0], "median": at(0.5), "p95": at(0.95), "max": lengths[-1]}


def overlap(train: SplitSummary, test: SplitSummary) -> list[dict[str, Any]]:
    """The test rows whose prompt is in train as well, in the order of the test rows."""
    return [
        {"test_row": row, "test_id": name, "train_rows": [r for r, _ in there], "train_ids": [n for _, n in there]}
        for key, places in test.places.items()
        if (there := train.places.get(key))
        for row, name in places
    ]


def versions() -> dict[str, str | None]:
    """Of what the bytes of the output depend on."""
    return {name: installed_version(name) for name in ("pyarrow", "datasets")}


def table(manifest: dict[str, Any]) -> str:
    """A short table of a manifest, for the terminal."""
    source, limit = manifest["source"], manifest["prompt_limit"]
    origin = source.get("repository") or ", ".join(file["name"] for file in source["files"])
    lines = [f"{manifest['task']}: verifier {manifest['verifier']}, licence {manifest['licence']}, from {origin}"]
    if "revision" in source:
        lines[0] += f" at {source['revision'][:12]}"
    heads = ("split", "rows", "rejected", "prompt tokens min/median/p95/max", f"over {limit}", "answers")
    rows = [heads]
    for split, found in manifest["splits"].items():
        tokens = found["prompt_tokens"]
        lengths = "/".join(map(str, tokens.values())) if tokens else "no tokenizer given"
        answers = found["answers"]
        if "distinct" in answers:
            text = f"{answers['distinct']} distinct"
        else:
            text = ", ".join(f"{answer} {count}" for answer, count in answers.items())
        over = str(found["over_the_prompt_limit"]) if tokens else "-"
        rows.append((split, str(found["rows"]), str(found["rejected"]), lengths, over, text))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *manifest["notes"]])
