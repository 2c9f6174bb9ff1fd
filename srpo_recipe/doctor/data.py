"""The data: parquet files with verl's columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok
from srpo_recipe.method.chat import CHAT, is_chat
from srpo_recipe.records.files import open_parquet
from srpo_recipe.records.training_rows import require_index


def _files(value: Any) -> Iterator[Path]:
    for file in [value] if isinstance(value, str) else value or []:
        yield Path(file).expanduser()


def data(case: Case) -> Answer:
    """Training and validation files can be read, and hold prompts, data sources, ground truths and numbers of the rows."""
    section = case.config.data
    if case.config.task.get("generate"):
        return ok(f"task={case.config.task.name} writes its own when the run starts")
    counts = {}
    for key in ("train_files", "val_files"):
        counts[key] = 0
        for file in _files(section[key]):
            try:
                counts[key] += _rows(file, section.prompt_key, section.reward_fn_key)
                if section.custom_cls.path is None:  # else a loader of the user's gives the numbers
                    require_index(file)
            except ValueError as error:
                fix = f"write it with scripts/prepare_data.sh, or correct data.{key} (docs/data.md has the columns)"
                return FAIL, f"data.{key}: {str(error).splitlines()[0]}", fix
    shown = f"{counts['train_files']} rows to train on, {counts['val_files']} to validate"
    if counts["train_files"] < section.train_batch_size:
        fix = f"data.train_batch_size={counts['train_files']} or less, or more data"
        return FAIL, f"{shown}, but data.train_batch_size={section.train_batch_size}", fix
    if not counts["val_files"]:
        return WARN, shown, "give data.val_files with rows, or trainer.val_before_train=false trainer.test_freq=-1"
    return ok(shown)


def _rows(file: Path, prompt_key: str, source_key: str) -> int:
    """How many rows a file has. Raises ValueError, with the file, when training could not read the first of them."""
    with open_parquet(file) as table:
        names, rows = table.schema_arrow.names, table.metadata.num_rows
        missing = [name for name in (prompt_key, source_key, "reward_model") if name not in names]
        if missing:
            raise ValueError(f"{file} lacks the column {', '.join(missing)}; it has {', '.join(names)}")
        first = next(table.iter_batches(batch_size=1)).to_pylist()[0] if rows else None
    if first is None:
        return 0
    if not is_chat(first[prompt_key]):
        raise ValueError(f"{file} row 0: {prompt_key} must be {CHAT}")
    if "ground_truth" not in (first["reward_model"] or {}):
        raise ValueError(f"{file} row 0: there is no reward_model.ground_truth")
    return rows
