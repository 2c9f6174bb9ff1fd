"""Runs of training whose metrics a benchmark reads: their settings, and the one that records the rollouts for the others."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from replay import RECORDED, Recording
from stock_verl import STOCK
from workload import Size, write_model, write_prompts

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Setting:
    """One shape of a step. prompt and response are in tokens; tokens_per_pass bounds a micro-batch."""

    ranks: int = 1
    prompts: int = 10
    rollouts: int = 8
    prompt: int = 200
    response: int = 400
    tokens_per_pass: int = 4096
    checkpointing: bool = False  # an update of 3 F; with it 4 F, in stock GRPO as well
    size: Size = Size()


def overrides(setting: Setting, folder: Path, hardware: str) -> list[str]:
    """Hydra overrides that every run shares."""
    sizes = {
        "data.train_batch_size": setting.prompts,
        "actor_rollout_ref.rollout.n": setting.rollouts,
        "data.max_prompt_length": setting.prompt,
        "data.max_response_length": setting.response,
        "actor_rollout_ref.rollout.max_model_len": setting.prompt + setting.response,
        "actor_rollout_ref.rollout.ignore_eos": "true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": setting.tokens_per_pass,
        "trainer.n_gpus_per_node": setting.ranks,
    }
    return [f"{key}={value}" for key, value in sizes.items()] + [
        "task=parquet",
        "model=path",
        f"hardware={hardware}",
        f"actor_rollout_ref.model.path={folder}/model",
        f"data.train_files={folder}/prompts.parquet",
        f"data.val_files={folder}/prompts.parquet",
        f"reward.custom_reward_function.path={HERE}/workload.py",
        "reward.custom_reward_function.name=no_reward",
        "method.optimizer_steps=1",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={setting.checkpointing}",
        "trainer.total_epochs=1000000",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.logger=[file]",
        "trainer.project_name=benchmark",
        "trainer.experiment_name=step",
        f"run.root={folder}/runs",
    ]


def replayed(folder: Path, steps: int) -> list[str]:
    """Hydra overrides of a run whose rollouts verl records, or reads where they are recorded."""
    return [
        "skip.rollout_tq.enable=true",
        f"skip.rollout_tq.dump_dir={folder}/rollouts",
        f"skip.rollout_tq.steps={list(range(1, steps + 1))}".replace(" ", ""),
    ]


def program(method: str) -> list[str]:
    """What Python runs for a method, "stock" being verl's own GRPO."""
    if method == "stock":
        return [str(HERE / "stock_verl.py"), *STOCK]
    return ["-m", "srpo_recipe.main", f"method={method}"]


def run(command: list[str], name: str, steps: int, folder: Path) -> list[dict]:
    """Run a program with its overrides to the end; returns verl's metrics of every step. Its events for TensorBoard are in
    FOLDER/NAME_events. Raises RuntimeError with the end of the log.
    """
    log, metrics = folder / f"{name}.log", folder / f"{name}.jsonl"
    arguments = [f"run.name={name}", f"trainer.total_training_steps={steps}"]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    variables |= {"VERL_FILE_LOGGER_PATH": str(metrics), "TENSORBOARD_DIR": str(folder / f"{name}_events")}
    print(f"  {name}: {steps} steps, log {log}", file=sys.stderr, flush=True)
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, *command, *arguments], stdout=file, stderr=subprocess.STDOUT, env=variables, timeout=3600
        ).returncode
    if code:
        raise RuntimeError(f"{name} ended with status {code}; the end of {log}:\n{log.read_text()[-3000:]}")
    return [json.loads(line)["data"] for line in metrics.read_text().splitlines() if '"timing_s/step"' in line]


def record(setting: Setting, folder: Path, hardware: str) -> Recording:
    """Make the workload, let verl roll out one batch and record it."""
    write_model(folder / "model", setting.size, seed=0)
    write_prompts(folder / "prompts.parquet", 4 * setting.prompts, setting.prompt, setting.size.vocabulary, seed=0)
    run([*program("stock"), *overrides(setting, folder, hardware), *replayed(folder, 1)], "record", 1, folder)
    (file,) = (folder / "rollouts").rglob(RECORDED)
    return Recording(torch.load(file, weights_only=False), file.parents[2], (file.parent / "meta.json").read_text())
