"""The data: parquet files with verl's columns."""

from srpo_recipe.data import usable
from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok


def data(case: Case) -> Answer:
    """Training and validation files can be read, and hold prompts, data sources, ground truths and numbers of the rows."""
    section = case.config.data
    if case.config.task.get("generate"):
        return ok(f"task={case.config.task.name} writes its own when the run starts")
    if section.custom_cls.path is not None:
        return ok("a loader of the user's reads the files")
    try:
        found = usable.check(case.config)
    except ValueError as error:
        fix = (
            "write the files with scripts/prepare_data.sh, or correct data.train_files or data.val_files (docs/data.md)"
        )
        return FAIL, str(error).splitlines()[0], fix
    counts = found.rows
    shown = f"{counts['train_files']} rows to train on, {counts['val_files']} to validate"
    if counts["train_files"] < section.train_batch_size:
        fix = f"data.train_batch_size={counts['train_files']} or less, or more data"
        return FAIL, f"{shown}, but data.train_batch_size={section.train_batch_size}", fix
    if not counts["val_files"]:
        return WARN, shown, "give data.val_files with rows, or trainer.val_before_train=false trainer.test_freq=-1"
    return ok(shown)
