"""Hostile mathematics against verl's own reward workers under Ray, wired as in a training run.

    python benchmarks/reward_workers.py [--ray-dir DIR] [--workers 2] [--time-limit 2]

Every response of HOSTILE_MATH goes to one of the workers, alone, and then an honest one; afterwards all of them at once,
with an honest one behind them. The last line is one JSON object: seconds of each, the slowest, the honest rewards.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from verl.experimental.reward_loop import RewardLoopManager
from verl.protocol import DataProto

from srpo_recipe.run.prepare import prepare
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.verify.adversarial import HOSTILE_MATH

HONEST, TRUTH = r"So it is \boxed{\frac{10}{4}}.", "2.5"


def byte_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One token a byte, so that any text survives the way through a tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def composed(folder: Path, workers: int, time_limit: float) -> DictConfig:
    """A training run's configuration with the verifier math, prepared by the entry point's own code."""
    overrides = [
        "task=parquet",
        "data.train_files=[]",
        "data.val_files=[]",
        f"run.root={folder}",
        "run.name=run",
        "srpo.verifier.name=math",
        f"srpo.verifier.time_limit={time_limit}",
        f"reward.num_workers={workers}",
        f"actor_rollout_ref.model.path={folder}/tokenizer",
    ]
    config = compose_config(overrides)
    prepare(config)
    return config


def rows(tokenizer: PreTrainedTokenizerFast, responses: list[str]) -> list[DataProto]:
    """Each response as verl's agent loop hands it to a reward worker."""
    made = []
    for response in responses:
        ids = torch.tensor([tokenizer.encode(response)])
        batch = {"prompts": ids[:, :0], "responses": ids, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        row = {
            "data_source": "math",
            "reward_model": {"style": "rule", "ground_truth": TRUTH},
            "extra_info": {"index": 0},
            "__num_turns__": 2,
        }
        columns = {name: np.array([value], dtype=object) for name, value in row.items()}
        made.append(DataProto(batch=TensorDict(batch, batch_size=1), non_tensor_batch=columns))
    return made


def timed(worker, row: DataProto) -> tuple[float, dict]:
    started = time.monotonic()
    result = ray.get(worker.compute_score.remote(row))
    return time.monotonic() - started, result["reward_extra_info"]


def measure(config: DictConfig) -> dict:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config.actor_rollout_ref.model.path)
    workers = RewardLoopManager(config).reward_loop_worker_handles
    honest, *hostile = rows(tokenizer, [HONEST, *HOSTILE_MATH.values()])
    for worker in workers:
        print(f"first verification of a worker, with the start of its processes: {timed(worker, honest)[0]:.1f} s")

    alone, after, failures = {}, [], {}
    for number, (name, row) in enumerate(zip(HOSTILE_MATH, hostile, strict=True)):
        worker = workers[number % len(workers)]
        alone[name], info = timed(worker, row)
        seconds, honest_info = timed(worker, honest)
        after.append(seconds)
        failures[name] = info["failure"]
        print(f"{name:30} {alone[name]:6.2f} s  {info['failure'] or 'done':8} {info['acc']}", end="")
        print(f"   then an honest one {seconds:5.2f} s  {honest_info['acc']}", flush=True)
        assert info["acc"] == 0.0 and honest_info["acc"] == 1.0, (name, info, honest_info)

    started = time.monotonic()
    pending = [worker.compute_score.remote(row) for row in [*hostile, honest] for worker in workers]
    results = ray.get(pending)
    together = time.monotonic() - started
    assert [row["reward_score"] for row in results] == [0.0] * len(hostile) * len(workers) + [1.0] * len(workers)
    return {
        "time_limit": config.srpo.verifier.time_limit,
        "workers": len(workers),
        "processes": config.srpo.verifier.processes,
        "hostile": len(hostile),
        "timeouts": sum(failure == "timeout" for failure in failures.values()),
        "slowest_hostile_seconds": round(max(alone.values()), 2),
        "slowest_honest_seconds": round(max(after), 2),
        "all_at_once_seconds": round(together, 2),
        "all_at_once_responses": len(results),
        "kept": sum(len(path.read_text().splitlines()) for path in Path(config.run.dir).glob("*/*.jsonl")),
        "honest_reward": 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray-dir", help="Ray's temporary folder, a short path (default: Ray's own)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        byte_tokenizer(folder / "tokenizer")
        config = composed(folder, options.workers, options.time_limit)
        ray.init(num_cpus=8, include_dashboard=False, _temp_dir=options.ray_dir)
        try:
            result = measure(config)
        finally:
            ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
