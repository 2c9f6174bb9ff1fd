"""The data: parquet files with verl's columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok


def _files(value: Any) -> Iterator[Path]:
    for file in [value] if isinstance(value, str) else value:
        yield Path(file).expanduser()


def data(case: Case) -> Answer:
    """Training and validation files can be read, and hold prompts, data sources and ground truths."""
    section = case.config.data
    if case.config.task.get("generate"):
        return ok(f"task={case.config.task.name} writes its own when the run starts")
    counts = {}
    for key in ("train_files", "val_files"):
        counts[key] = 0
        for file in _files(section[key]):
            problem, rows = _read(file, section.prompt_key, section.reward_fn_key)
            if problem:
                mend = f"write it with scripts/prepare_data.sh, or correct data.{key} (docs/data.md has the columns)"
                return FAIL, f"data.{key}: {file} {problem}", mend
            counts[key] += rows
    shown = f"{counts['train_files']} rows to train on, {counts['val_files']} to validate"
    if counts["train_files"] < section.train_batch_size:
        mend = f"data.train_batch_size={counts['train_files']} or less, or more data"
        return FAIL, f"{shown}, but data.train_batch_size={section.train_batch_size}", mend
    if not counts["val_files"]:
        return WARN, shown, "give data.val_files with rows, or trainer.val_before_train=false trainer.test_freq=-1"
    return ok(shown)


def _read(file: Path, prompt_key: str, source_key: str) -> tuple[str | None, int]:
    """(what is wrong with the file or None, its rows)."""
    import pyarrow
    from pyarrow import parquet

    if not file.is_file():
        return "is not there", 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        first = next(table.iter_batches(batch_size=1)).to_pylist() if table.metadata.num_rows else []
    except (pyarrow.ArrowException, OSError) as error:
        return f"is no whole parquet file: {str(error).splitlines()[0]}", 0
    missing = [name for name in (prompt_key, source_key, "reward_model") if name not in names]
    if missing:
        return f"lacks the column {', '.join(missing)}; it has {', '.join(names)}", 0
    if not first:
        return None, 0
    turns = first[0][prompt_key]
    if not (
        isinstance(turns, list) and turns and isinstance(turns[0], dict) and {"role", "content"} <= turns[0].keys()
    ):
        return f"has no chat messages (role, content) in {prompt_key}", 0
    if "ground_truth" not in (first[0]["reward_model"] or {}):
        return "has no reward_model.ground_truth", 0
    return None, table.metadata.num_rows
