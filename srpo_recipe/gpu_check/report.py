"""The whole command: all parts, the table on the screen, the file to send in."""

import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from srpo_recipe.gpu_check.parts import Request, examine
from srpo_recipe.gpu_check.row import FAIL, Row, line, table
from srpo_recipe.records.files import write_whole

ROOT = Path(__file__).parents[2]


def check(device: str, quick: bool, only: tuple[str, ...], folder: Path, out: Path) -> int:
    """Run the parts `only`, print their table and write `out`. folder: for models and logs.

    Returns 1 where something failed, else 0. Raises ValueError where there is no such device.
    """
    from srpo_recipe.gpu_check.place import facts
    from srpo_recipe.gpu_check.sizes import sizes

    gpus = count(device)
    found: dict[str, Any] = {
        "command": " ".join(["python -m srpo_recipe.gpu_check", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device,
        "machine": facts(device),
    }
    started = time.monotonic()

    def tell(row: Row) -> None:
        print(line(row, 0), flush=True)

    request = Request(device, quick, only, folder, gpus)
    rows, seconds = examine(request, len(sizes(device, quick).models), tell)
    found |= {"seconds": round(time.monotonic() - started, 1), "seconds_by_process": seconds}
    found["rows"] = [row.plain() for row in rows]
    write_whole(out, json.dumps(found, indent=1) + "\n")
    print(f"\n{table(rows)}\n{found['seconds']:.0f} s; the file to send in: {out}", flush=True)
    return int(any(row.status == FAIL for row in rows))


def count(device: str) -> int:
    """GPUs that torch sees; 1 on a CPU. Raises ValueError where it sees none, with what to do."""
    import torch

    if device == "cpu":
        return 1
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        built = torch.version.cuda or "no CUDA"
        raise ValueError(
            f"torch {torch.__version__} (built for {built}) sees no GPU; --device cpu tries the checks without one"
        )
    return found


def commit() -> str:
    """Of this code: git's, or what scripts/pack_gpu_check.sh noted."""
    noted = ROOT / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
