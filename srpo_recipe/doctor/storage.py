"""Where the run writes: the folder, and room for its checkpoints."""

import os
import tempfile
from pathlib import Path

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok
from srpo_recipe.doctor.machine import planned
from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.weights import checkpoint_bytes
from srpo_recipe.records import checkpoint


def existing(folder: str) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder).absolute()
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def run_root(case: Case) -> Answer:
    """A file can be written where the run will live. Nothing is left behind."""
    wanted, here = case.config.run.root, existing(case.config.run.root)
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"srpo_recipe")
    except OSError as error:
        return FAIL, f"run.root={wanted} cannot be written: {error.strerror}", "give a folder of yours: run.root=DIR"
    return ok(f"{here}" + ("" if here == Path(wanted).absolute() else f" takes files; {wanted} will be made"))


def checkpoint_space(case: Case) -> Answer:
    """Free bytes against the checkpoints that the run keeps, and the one that is being written; those that it has are there."""
    trainer = case.config.trainer
    if trainer.save_freq <= 0:
        return ok("trainer.save_freq writes no checkpoints")
    one = checkpoint_bytes(*planned(case))
    here = existing(trainer.default_local_dir)
    space = os.statvfs(here)
    free = space.f_bavail * space.f_frsize
    keep = trainer.max_actor_ckpt_to_keep
    there = 0 if case.config.run.fresh else len(checkpoint.steps(trainer.default_local_dir))
    needed = one * max(1, (keep or 2) + 1 - there)
    shown = f"{free / GIB:.2f} GiB free at {here}, a checkpoint is {one / GIB:.2f}"
    if there:
        shown += f", {there} of this run are there"
    fix = f"free {max(0.0, needed - free) / GIB:.1f} GiB, run.root=DIR on a larger disk, or trainer.max_actor_ckpt_to_keep=1"
    if free < needed:
        return FAIL, f"{shown}, {f'{keep} are kept and one more is' if keep else 'three at least are'} written", fix
    if keep is None:
        return WARN, f"{shown}, and all are kept", "trainer.max_actor_ckpt_to_keep=2 keeps the last two"
    return ok(f"{shown}, {keep} are kept")


def shared_files(case: Case) -> Answer:
    """A file written here is read on every other node of the Ray cluster; with one node there is nobody to read it."""
    if case.config.trainer.nnodes == 1:
        return ok("not needed: one node")
    if os.environ.get("RAY_ADDRESS", "http").startswith("http"):
        return ok("not tried: no Ray cluster to ask (RAY_ADDRESS)")
    from srpo_recipe.doctor.cluster import blind_nodes

    with tempfile.NamedTemporaryFile("w", dir=existing(case.config.run.root), prefix=".srpo-doctor-") as file:
        file.write("seen")
        file.flush()
        blind, count = blind_nodes(file.name)
    if blind:
        fix = "put run.root, the data and the model on a file system that all nodes mount"
        return FAIL, f"{', '.join(blind)} cannot read a file written in {Path(file.name).parent}", fix
    return ok(f"{count} node(s) read a file written in {Path(file.name).parent}")
