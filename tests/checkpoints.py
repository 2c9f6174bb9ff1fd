"""Checkpoints that the tests write: the files that verl and the recipe write, with a few numbers in them."""

from pathlib import Path

import torch

from srpo_recipe.records import checkpoint, manifest


def write_files(folder: Path, ranks: int = 1, teacher: bool = True, step: int = 0) -> None:
    """The files of one checkpoint in its folder, in the order in which they come."""
    for kind in ["actor", *["teacher"] * teacher]:
        (folder / kind).mkdir(parents=True)
        for rank in range(ranks):
            torch.save({"step": step}, folder / kind / f"model_world_size_{ranks}_rank_{rank}.pt")
    torch.save({"order": step}, folder / "data.pt")


def write_checkpoint(folder: Path, step: int, ranks: int = 1, teacher: bool = True, sealed: bool = True) -> Path:
    """A whole checkpoint, which the pointer names. sealed: whether it has a manifest; verl's own have none."""
    path = checkpoint.step_folder(folder, step)
    write_files(path, ranks, teacher, step)
    if sealed:
        manifest.seal(path, step)
    checkpoint.point(folder, step)
    return path
