"""Rollouts of a run to look at, token by token.

RUN/samples/
    step_000010.parquet             rollouts of training step 10
    step_000010_held_out.parquet    rollouts of the validation after it

One row is one rollout, whole groups one after the other; the columns are those of `schema`. Each file appears whole or not at
all. A column over the tokens is null where the quantity does not exist: nothing of a teacher where none scored the rollout,
nothing but the text of a held-out one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_recipe.records.files import open_parquet, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "samples"
TRAIN, HELD_OUT = "train", "held-out"
ROUTES = ("grpo", "sdpo", "both", "none")
# One number for each response token, in nats unless said otherwise.
NUMBERS = (
    "log_prob",  # of the token, by the student before its update
    "sampler_log_prob",  # by the rollout engine
    "teacher_log_prob",  # by the self-teacher under its own prompt
    "teacher_entropy",  # over the whole vocabulary
    "weight",  # w of the distillation part, 1 on the mean over the mini-batch; no unit
    "divergence",  # between student and teacher over K + 1 bins
    "advantage",  # in units of the reward
)
# The words that student and teacher like best at each token of a routed rollout, best first, and their log-probs.
WORDS = ("student_words", "teacher_words")
WORD_LOG_PROBS = ("student_word_log_probs", "teacher_word_log_probs")
SHOWN_WORDS = 5

# Columns whose texts come from outside.
_TEXTS = ("prompt", "response", "verdict", "teacher_prompt", "token", *WORDS)

_FILE = re.compile(r"step_(\d+)(_held_out)?\.parquet")


@cache
def schema() -> "pa.Schema":
    """The columns of a file of samples."""
    import pyarrow as pa

    text, numbers = pa.string(), pa.list_(pa.float32())
    return pa.schema(
        {
            "step": pa.int32(),
            "split": text,  # train or held-out
            "group": pa.int32(),  # the rollouts of one prompt share it, within the file
            "index": pa.int64(),  # extra_info.index of the prompt in its data; null for a held-out one
            "session": pa.int32(),  # number of the rollout in its group
            "prompt": text,  # as the student saw it, chat template included; of a held-out one without control tokens
            "response": text,
            "reward": pa.float64(),
            "correct": pa.bool_(),
            "verdict": text,  # JSON: what the reward function gave beside the reward
            "route": text,  # one of ROUTES; null for a held-out rollout
            "sibling": pa.int32(),  # session of the sibling whose response the teacher was shown
            "teacher_prompt": text,  # as the teacher saw it
            "shortened": pa.bool_(),  # whether the demonstration in it was cut to fit
            "token": pa.list_(text),  # the texts of the response's tokens, which together are the response
            "counted": pa.list_(pa.bool_()),  # whether the token is the model's own and takes part in the loss
            **dict.fromkeys(NUMBERS, numbers),
            **dict.fromkeys(WORDS, pa.list_(pa.list_(text))),
            **dict.fromkeys(WORD_LOG_PROBS, pa.list_(numbers)),
        }
    )


def place(run: str | Path, step: int, split: str) -> Path:
    """Where the samples of a step lie. split: TRAIN or HELD_OUT."""
    ending = {TRAIN: "", HELD_OUT: "_held_out"}[split]
    return Path(run) / FOLDER / f"step_{step:06d}{ending}.parquet"


def write(run: str | Path, step: int, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the samples of a step. rows: the columns of a rollout that it has, without step and split. Returns the file's path.

    Texts may hold anything that Python's strings hold: a lone surrogate, which no file can hold, becomes U+FFFD.
    """
    known = set(schema().names)

    def whole(row: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(row) - known):
            raise KeyError(f"a sample has no column {', '.join(unknown)}")
        cleaned = {name: clean(row[name]) for name in _TEXTS if name in row}
        return {**row, **cleaned, "step": step, "split": split}

    return write_parquet(place(run, step, split), map(whole, rows), schema())


def verdict_text(info: Mapping[str, Any]) -> str:
    """What a reward function gave beside the reward, as the JSON of the column `verdict`."""
    return json.dumps(_plain(dict(info)), ensure_ascii=False, default=str)


def files(run: str | Path) -> list[tuple[int, str, Path]]:
    """(step, split, path) of every file of samples, by step; a step's training rollouts come before its held-out ones."""
    found = []
    for path in (Path(run) / FOLDER).glob("step_*.parquet"):
        if match := _FILE.fullmatch(path.name):
            found.append((int(match[1]), HELD_OUT if match[2] else TRAIN, path))
    return sorted(found, key=lambda one: (one[0], one[1] == HELD_OUT))


def read(path: Path) -> list[dict[str, Any]]:
    """The rollouts of one file, null as None. Raises ValueError, with the file, for one that is no whole file of samples."""
    file = open_parquet(path)
    if missing := [name for name in schema().names if name not in file.schema_arrow.names]:
        raise ValueError(f"{path} is no file of samples: it has no column {', '.join(missing)}")
    return file.read(columns=schema().names).to_pylist()


def forget_after(run: str | Path, step: int) -> None:
    """Remove the samples of later steps: a run that resumes after `step` makes them again."""
    for found, _, path in files(run):
        if found > step:
            path.unlink(missing_ok=True)


def clean(value: Any) -> Any:
    """A text or lists of texts with every lone surrogate, which no file can hold, replaced by U+FFFD."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    return [clean(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """The value as JSON can say it: numbers of numpy as numbers, and those that are not finite as their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        return _plain(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
