"""Sequences split over ranks against the objective on plain models: the table of docs/long.md.

    python benchmarks/split.py [--kinds 1x1 2x2 4x2 4x4]

A kind is RANKSxSIZE: so many ranks (FSDP2 over gloo, fp32), SIZE of which have a slice each of the same sequences. Each starts
tests/split_process.py on a small random Qwen3 and 16 rollouts. A row has the largest differences over the splits into one, four
and sixteen micro-batches: of the loss, relative; of the gradients, relative to the largest number of a weight's gradient; of the
metrics, relative.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from environment import environment

TESTS = Path(__file__).resolve().parent.parent / "tests"
SPLITS = ("one", "four", "row")


def run(folder: Path, ranks: int, size: int) -> dict:
    variables = {**os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(TESTS / "split_process.py"), str(folder), "qwen3", str(size)]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return torch.load(folder / f"qwen3_{ranks}_{size}.pt", weights_only=False)


def differences(found: dict, case: str) -> list[float]:
    """Of loss, gradients and metrics."""
    plain_loss, plain = found["loss"][case, "plain"], found["gradient"][case, "plain"]
    means = found["means"][case, "plain"]
    loss = max(abs(found["loss"][case, split] / plain_loss - 1) for split in SPLITS)
    gradient = max(
        float((found["gradient"][case, split][name] - value).abs().max() / value.abs().max())
        for split in SPLITS
        for name, value in plain.items()
    )
    metrics = max(
        abs(found["metrics"][case, split][name] - value) / max(abs(value), 1e-3)
        for split in SPLITS
        for name, value in means.items()
    )
    return [loss, gradient, metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["1x1", "2x2", "4x2", "4x4"])
    kinds = parser.parse_args().kinds
    sys.path.insert(0, str(TESTS))
    from engine_rows import CASES
    from test_engine import write_model

    print(json.dumps(environment()))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "qwen3")
        found = {kind: run(Path(folder), *map(int, kind.split("x"))) for kind in kinds}
    print("| case |", " | ".join(f"{kind} loss, gradient, metrics" for kind in kinds), "|")
    print("|---" * (1 + len(kinds)), end="|\n")
    for case in (case for case in CASES if case not in ("nothing", "mixed")):
        cells = [", ".join(f"{value:.0e}" for value in differences(found[kind], case)) for kind in kinds]
        print("|", case, "|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
