"""From the rows of a source to a folder with train.parquet, test.parquet and manifest.json, whole or not at all."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo_recipe.data import manifest as manifests
from srpo_recipe.data.checks import Checks, Tokens, TooLong, gold_response, gold_verifier
from srpo_recipe.data.formats import Converter, Example
from srpo_recipe.data.manifest import SplitSummary
from srpo_recipe.data.problems import BadRow, Problem, Refused
from srpo_recipe.data.sources import Entry
from srpo_recipe.data.tasks import SPLITS, TASKS
from srpo_recipe.records.files import sha256, whole_folder, write_parquet

# Test rows that are also in train and get a note each; the manifest has all of them.
OVERLAP_NAMED = 5
MANIFEST, REJECTED = "manifest.json", "rejected.jsonl"
# What a call may leave in its folder, and a later one may replace.
WRITTEN = frozenset([*(f"{split}.parquet" for split in SPLITS), MANIFEST, REJECTED])


class BadData(ValueError):
    """There are bad rows, and nobody said that they may be skipped. problems: all of them."""

    def __init__(self, problems: list[Problem]):
        super().__init__(f"{len(problems)} bad row{'s' * (len(problems) != 1)}")
        self.problems = problems


@dataclass
class Request:
    """What is to be prepared.

    task: its name, which becomes data_source. verifier: a name for srpo_recipe.verify.resolve. rows: split -> (file, its
    entries, see sources.Entry). origin: what the manifest says of the source besides its files. gold_template: see
    checks.gold_response. tokens, tokenizer: a counter and what it counts with (both of checks.py), or None. limit: of a
    prompt, in tokens.
    """

    task: str
    verifier: str
    converter: Converter
    rows: dict[str, tuple[Path, Iterable[Entry]]]
    origin: dict[str, Any] = field(default_factory=dict)
    ability: str = "reasoning"
    licence: str = "that of the source"
    gold_template: str | None = None
    tokens: Tokens | None = None
    tokenizer: dict[str, str] | None = None
    limit: int = 2048
    skip_bad: bool = False


def prepare(request: Request, out: Path) -> dict[str, Any]:
    """Check all rows and write the folder `out`; returns its manifest.

    Without skip_bad nothing is written when any row is bad; with it, bad rows go to rejected.jsonl with their reasons.
    Raises BadData for bad rows, Refused for what cannot be skipped, FileExistsError when `out` holds other files.
    """
    for path in {path for path, _ in request.rows.values()}:
        if path.resolve().is_relative_to(out.resolve()):
            raise Refused(f"{path} lies in {out}, which is to be replaced; name another folder to write")
    response = gold_response(request.verifier, request.gold_template)
    problems: list[Problem] = []
    with whole_folder(out, WRITTEN) as folder, gold_verifier(request.verifier) as verify:
        run = _Run(request, problems)
        for split in [split for split in SPLITS if split in request.rows]:
            checks = Checks(request.verifier, verify, response, request.tokens, request.limit)
            write_parquet(folder / f"{split}.parquet", run.rows(split, checks), schema())
        if problems and not request.skip_bad:
            raise BadData(problems)
        empty = [split for split, summary in run.summaries.items() if not summary.rows]
        if empty:
            raise Refused(f"no row is left for {' and '.join(empty)}")
        manifest = _manifest(request, run, folder, gold_checked=response is not None)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if problems:
            with (folder / REJECTED).open("w") as file:
                file.writelines(json.dumps(vars(problem), default=str) + "\n" for problem in problems)
    return manifest


def schema():
    """verl's columns for one single-turn prompt, as pyarrow has them."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct({"split": text, "index": pa.int64(), "id": text, "reference": text}),
        }
    )


class _Run:
    """One pass over the rows of all splits: what is written, what is bad, what is left out."""

    def __init__(self, request: Request, problems: list[Problem]):
        self.request, self.problems = request, problems
        self.summaries: dict[str, SplitSummary] = {}
        self.left_out: set[str] = set()

    def rows(self, split: str, checks: Checks) -> Iterator[dict[str, Any]]:
        """The rows of verl's schema, good ones only."""
        summary = self.summaries[split] = SplitSummary(self.request.verifier)
        path, entries = self.request.rows[split]
        for number, position, row in entries:
            try:
                if isinstance(row, BadRow):
                    raise row
                self.left_out |= _not_used(row, self.request.converter)
                example = self.request.converter(row, position)
                tokens = checks(example, number)
            except BadRow as bad:
                summary.rejected += 1
                summary.too_long += isinstance(bad, TooLong)
                key = self.request.converter.names.get(bad.key, bad.key) if not isinstance(row, BadRow) else bad.key
                content = bad.content if isinstance(row, BadRow) else row
                self.problems.append(Problem(str(path), number, key, bad.expected, bad.found, content))
                continue
            yield self._verl_row(example, split, summary.rows)
            summary.add(example, number, tokens)

    def _verl_row(self, example: Example, split: str, index: int) -> dict[str, Any]:
        return {
            "data_source": self.request.task,
            "prompt": example.messages,
            "ability": self.request.ability,
            "reward_model": {"style": "rule", "ground_truth": example.ground_truth},
            "extra_info": {"split": split, "index": index, "id": example.id, "reference": example.reference},
        }


def _not_used(row: dict[str, Any], converter: Converter) -> set[str]:
    """The keys of `row` that the converter does not read; within an object that it reads a part of, the keys of that object."""
    used, outer = set(converter.used), {name.partition(".")[0] for name in converter.used if "." in name}
    names = set()
    for key, value in row.items():
        inside = isinstance(value, dict) and key in outer
        names |= {f"{key}.{name}" for name in value} if inside else {key}
    return names - used - outer


def _manifest(request: Request, run: _Run, folder: Path, gold_checked: bool) -> dict[str, Any]:
    published = TASKS[request.task].rows if request.task in TASKS else {}
    splits, notes = {}, []
    for split, summary in run.summaries.items():
        path = folder / f"{split}.parquet"
        splits[split] = {"file": path.name, "sha256": sha256(path), **summary.as_dict()}
        if summary.rows != published.get(split, summary.rows):
            notes.append(f"{split} has {summary.rows} rows; the published set has {published[split]}")
    notes += [f"the source holds no {split} split" for split in SPLITS if split not in splits]
    common = manifests.overlap(*(run.summaries[split] for split in SPLITS)) if len(splits) == len(SPLITS) else []
    notes += [
        f"the prompt of test row {one['test_row']} (id {one['test_id']}) is also in train, row "
        f"{', '.join(map(str, one['train_rows']))} (id {', '.join(one['train_ids'])})"
        for one in common[:OVERLAP_NAMED]
    ]
    if len(common) > OVERLAP_NAMED:
        notes.append(f"the prompts of {len(common)} test rows in all are also in train")
    if not gold_checked:
        notes.append("the gold answers were not tried on the verifier: no --gold-response was given")
    files = dict.fromkeys(path for path, _ in request.rows.values())
    return {
        "task": request.task,
        "verifier": request.verifier,
        "licence": request.licence,
        "source": {
            **request.origin,
            "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in files],
            "keys_left_out": sorted(run.left_out),
        },
        "splits": splits,
        "tokenizer": request.tokenizer,
        "prompt_limit": request.limit,
        "train_test_overlap": {"rows": len(common), "pairs": common},
        "notes": notes,
        "versions": manifests.versions(),
    }
