"""A file of results under docs/results: a table of what was measured, with what somebody needs to measure it again.

docs/draw.py writes the tables of README and docs from these files.
"""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo_recipe.records.files import write_whole
from srpo_recipe.records.versions import commit

Cell = str | int | float | None


def write_results(
    path: Path,
    about: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    seeds: Sequence[int] | str,
    command: str | None = None,
    **more: Any,
) -> None:
    """Write one file of results.

    about: what was measured. columns, rows: the table as it is to be shown. seeds: of the runs. command: as it could be typed,
    this program's own unless given. more: further entries of the object. Raises ValueError for a row that does not fit the
    columns.
    """
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(f"results {path}, row {number}: {len(row)} cells for {len(columns)} columns")
    head = {
        "about": about,
        "command": command or f"`{shlex.join(['.venv/bin/python', *sys.argv])}`",
        "commit": commit(),
        "machine": machine(),
        "seeds": seeds if isinstance(seeds, str) else list(seeds),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **more,
        "columns": list(columns),
    }
    text = json.dumps(head, indent=1, ensure_ascii=False)[: -len("\n}")]
    lines = ",\n".join(f"  {json.dumps(list(row), ensure_ascii=False)}" for row in rows)
    write_whole(path, f'{text},\n "rows": [\n{lines}\n ]\n}}\n')


def machine() -> str:
    """Cores, their kind, memory and accelerator of this machine in a few words."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {_accelerator()}"


def _accelerator() -> str:
    torch = sys.modules.get("torch")  # whoever measures on one has imported it
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return "no accelerator"
