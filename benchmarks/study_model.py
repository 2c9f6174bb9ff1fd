"""The model for picks: not committed, made once in the study's folder, before the first run that needs it.

The same settings give the same bits on machines of one kind; elsewhere the last digits may differ, so every run's record names
the hash of its model, and what is made is taken only with the settings and the conditions of the protocol.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from study_protocol import Protocol, model, model_recipe
from study_records import Records

from srpo_recipe.records.files import sha256

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "model.safetensors"


def arguments(protocol: Protocol, out: Path) -> list[str]:
    """Of `python -m srpo_recipe.starter.tiny`, which makes it."""
    options = [word for name, value in model_recipe(protocol).items() for word in (f"--{name}", str(value))]
    return [*options, "--out", str(model(out))]


def make(protocol: Protocol, out: Path) -> None:
    """Make the model unless it is there. Raises SystemExit when it does not meet its conditions, ValueError as `check`."""
    if not model(out).exists():
        print(f"{time.strftime('%H:%M:%S')} the model for picks is made first, some ten minutes", flush=True)
        made = [sys.executable, "-m", "srpo_recipe.starter.tiny", *arguments(protocol, out)]
        if status := subprocess.run(made, cwd=ROOT).returncode:
            sys.exit(f"the model for picks was not made (exit {status})")
    check(protocol, out)


def check(protocol: Protocol, out: Path) -> None:
    """Raises ValueError, with the folder, for a model of other settings or conditions, or whose weights were changed."""
    from srpo_recipe.starter.tiny.acceptance import unmet  # imports torch, which nothing else here needs

    again = "remove the folder, and it is made again"
    made = provenance(out)
    wanted = model_recipe(protocol)
    if other := [f"{name} {made['recipe'].get(name)}" for name in wanted if made["recipe"].get(name) != wanted[name]]:
        raise ValueError(f"{model(out)} was made with {', '.join(other)}, which is not the protocol's: {again}")
    if failures := unmet(made["acceptance"], "picks"):
        raise ValueError(f"{model(out)}: {'; '.join(failures)}; {again}")
    if made["sha256"][WEIGHTS] != sha256(model(out) / WEIGHTS):
        raise ValueError(f"{model(out) / WEIGHTS} is not what was made there: {again}")


def provenance(out: Path) -> dict[str, Any]:
    """How the model came about. Raises ValueError, with the file, when it cannot be read."""
    path = model(out) / "provenance.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove the folder, and it is made again") from error


def digest(out: Path) -> str:
    """The first 16 digits of the weights' SHA-256, as records name them."""
    return provenance(out)["sha256"][WEIGHTS][:16]


def others(records: Records, out: Path) -> list[str]:
    """The files of recorded runs that started from a model with other bits."""
    ours = digest(out)
    return [str(records.path(run)) for run, record in records.all() if record.get("model") not in (None, ours)]
