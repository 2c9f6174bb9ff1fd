"""What a group's process does: its parts one after the other, each row a line of a file."""

import gc
import importlib
import json
import os
import traceback
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from srpo_recipe.gpu_check.row import FAIL, Row

MODULES = {"engine": "agree", "teacher": "ema", "memory": "memory", "step": "step"}


def work(task: dict[str, Any]) -> int:
    """task: as `parts.answers` writes it. A part that raises is a row that fails, and the next one goes on. Returns 0."""
    from srpo_recipe.gpu_check.place import Place
    from srpo_recipe.gpu_check.sizes import sizes

    place = Place(task["device"], task["rank"], task["world"])
    chosen = sizes(place.device, task["quick"])
    model = chosen.models[task["model"]] if task["model"] >= 0 else None
    if model is not None:
        folder = _prepare(place, model, Path(task["folder"]), task["out"])
    with open(task["out"], "a") as out:
        for part in task["parts"]:
            if model is None:
                from srpo_recipe.gpu_check import loss

                rows = loss.check(place, chosen)
            else:
                check = importlib.import_module(f"srpo_recipe.gpu_check.{MODULES[part]}").check
                rows = check(place, model, folder, *([chosen] if part in ("memory", "step") else []))
            for row in _caught(part, rows):
                if place.rank == 0 or row.status == FAIL:
                    out.write(json.dumps(row.plain()) + "\n")
                    out.flush()
            place.free()
    return 0


def _caught(part: str, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except Exception as error:  # noqa: BLE001  (a device that is not as it should be raises anything)
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield Row(part, "went to its end", FAIL, text[:300], numbers={"trace": traceback.format_exc()[-3000:]})


def _prepare(place, model, folder: Path, out: str) -> Path:
    """Join the ranks and write the model, which the processes of one size share."""
    import torch

    if not any(point.value == "srpo_recipe.plugin" for point in entry_points(group="verl.plugins")):
        importlib.import_module("srpo_recipe.plugin")  # unpacked, not installed: verl does not find it by itself
    from srpo_recipe.gpu_check import rank
    from srpo_recipe.gpu_check.model import write_model

    gc.collect()
    gc.freeze()  # what was imported stays; looking through it again and again costs a second each time
    own = Path(f"{out}.ranks")
    own.mkdir(exist_ok=True)
    rank.join(place, own)
    target = folder / model.name
    if place.rank == 0 and not (target / "config.json").exists():
        partial = target.with_name(f".{model.name}.{os.getpid()}")
        write_model(partial, model, place)
        partial.rename(target)
        place.free()
    torch.distributed.barrier()
    return target
