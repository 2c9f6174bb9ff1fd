"""`scripts/reproduce.sh`: every cell of the paper's tables is one command, whose configuration is the paper's."""

import json
import os
import shlex
import subprocess

import pytest
from cluster_runs import ROOT, environment

from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

MODELS = {"qwen3_8b": "Qwen/Qwen3-8B", "qwen3_4b": "Qwen/Qwen3-4B"}
TASKS = {"chemistry": "choice", "physics": "choice", "biology": "choice", "material": "choice", "tooluse": "tool_use"}
# The paper's table of hyper-parameters: learning rate, prompts of an optimiser step, beta.
METHODS = {
    "grpo": (1e-6, 8, 1.0),
    "sdpo": (1e-5, 32, 0.0),
    "srpo": (5e-6, 32, 1.0),
    "advantage_mix": (5e-6, 32, 0.0),
    "srpo_no_dw": (5e-6, 32, 0.0),
    "sdpo_incorrect_only": (1e-5, 32, 0.0),
    "sdpo_correct_only": (1e-5, 32, 0.0),
}


def launch(*arguments: str, status: int = 0, **variables: str) -> str:
    """Output of the launcher, called from another folder; without an environment, so that it ends behind the command it shows."""
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "reproduce.sh"), *arguments],
        env={**os.environ, "SRPO_VENV": "/nowhere", **variables},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def overrides(*arguments: str) -> list[str]:
    """What reaches the run."""
    text = launch("--dry-run", *arguments, status=1)
    assert "error: no environment in /nowhere" in text, text
    (command,) = [line for line in text.splitlines() if " -m srpo_recipe.main " in line]
    return shlex.split(command.partition(" -m srpo_recipe.main ")[2])


CELLS = [
    *(("qwen3_8b", "chemistry", method) for method in METHODS),
    *(("qwen3_8b", task, "srpo") for task in TASKS if task != "chemistry"),
    ("qwen3_4b", "chemistry", "srpo"),
]


@pytest.mark.parametrize("model, task, method", CELLS)
def test_a_cell_is_run_as_the_paper_says(model, task, method):
    config = compose_config(overrides(model, task, method, "7"))
    assert check(config)
    lr, prompts, beta = METHODS[method]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path == MODELS[model] and config.task.name == task
    assert (actor.optim.lr, actor.ppo_mini_batch_size, config.srpo.beta) == (lr, prompts, beta)
    assert (actor.optim.weight_decay, actor.optim.lr_warmup_steps, actor.grad_clip) == (0.01, 10, 1.0)
    assert (config.data.train_batch_size, rollout.n, rollout.temperature) == (32, 8, 1.0)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 8192)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.use_kl_loss) == (0.2, 0.28, False)
    assert (rollout.val_kwargs.n, rollout.val_kwargs.temperature, rollout.val_kwargs.top_p) == (16, 0.6, 0.95)
    assert config.data.apply_chat_template_kwargs.enable_thinking is False
    assert (config.srpo.teacher.ema_rate, config.srpo.top_k, config.srpo.alpha) == (0.05, 100, 0.5)
    assert (config.srpo.verifier.name, config.srpo.verifier.mode) == (TASKS[task], "published")
    assert config.srpo.seed == 7 and config.run.dir == f"outputs/sweeps/paper-{model}/{method}-{task}-seed7"
    assert config.data.train_files == f"data/{task}/train.parquet" and config.trainer.total_training_steps == 600
    assert config.trainer.n_gpus_per_node * config.trainer.nnodes == 8 and config.trainer.val_before_train


def test_base_is_a_validation_alone_in_a_folder_of_its_own():
    config = compose_config(overrides("qwen3_4b", "tooluse", "base"))
    assert config.trainer.val_only and config.run.dir == "outputs/paper-base/qwen3_4b/base-tooluse-seed42"


def test_overrides_come_last_and_variables_are_taken():
    found = overrides("qwen3_8b", "physics", "srpo", "1", "srpo.beta=3", "trainer.logger=[console]")
    assert found[-2:] == ["srpo.beta=3", "trainer.logger=[console]"]
    text = launch(
        "--dry-run", "qwen3_8b", "physics", "srpo", "srpo.beta=3", status=1, DATA="/sets", HARDWARE="gpu8x2", STEPS="9"
    )
    for word in (
        "task.dir=/sets/physics",
        "hardware=gpu8x2",
        "trainer.total_training_steps=9",
        "srpo.seed=42",
        "srpo.beta=3",
    ):
        assert f"{word} " in text


def test_an_array_holds_every_cell_with_its_own_data():
    arguments = ["--dry-run", "--slurm", "--nodes=1 --time=10:30:00", "qwen3_4b", "all", "grpo srpo", "1 2"]
    text = launch(*arguments, status=1)
    runs = [line.split()[1] for line in text.splitlines() if line.startswith("new ")]
    assert runs == [
        f"outputs/sweeps/paper-qwen3_4b/{method}-{task}-seed{seed}"
        for task in TASKS
        for method in ("grpo", "srpo")
        for seed in (1, 2)
    ]
    assert "--array=0-19 " in text and " --nodes=1 --time=10:30:00 " in text
    (command,) = [line for line in text.splitlines() if " -m srpo_recipe.main " in line]
    first = compose_config(shlex.split(command.partition(" -m srpo_recipe.main ")[2]))
    assert first.data.train_files == "data/chemistry/train.parquet" and first.run.name == "grpo-chemistry-seed1"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give MODEL TASK METHOD"),
        (["llama", "chemistry", "srpo"], "MODEL is one of qwen3_8b qwen3_4b, not 'llama'"),
        (["qwen3_8b", "law", "srpo"], "TASK is one of chemistry physics biology material tooluse, not 'law'"),
        (["qwen3_8b", "chemistry", "dapo"], "METHOD is one of base grpo sdpo"),
        (["qwen3_8b", "chemistry", "grpo srpo"], "one cell at a time; several are an array: --slurm"),
        (["qwen3_8b", "all", "srpo"], "TASK is one of"),
        (["--slurm"], "--slurm needs sbatch's options"),
        (["--slurm", "", "qwen3_8b", "all", "base grpo"], "base needs no array"),
        (["--nonsense"], "unknown argument --nonsense"),
        (
            ["qwen3_8b", "chemistry", "srpo"],
            "no data/chemistry/train.parquet: run\n  bash scripts/prepare_data.sh chemistry --source hub",
        ),
        (["qwen3_8b", "tooluse", "srpo"], "prepare_data.sh tooluse --source SPLITS --out data/tooluse"),
    ],
)
def test_what_is_no_cell_is_refused(arguments, message):
    assert message in launch(*arguments, status=1)


@pytest.mark.parametrize(
    "arguments",
    [("qwen3_8b", "chemistry", "srpo"), ("qwen3_4b", "biology", "grpo", "3"), ("qwen3_8b", "tooluse", "base")],
)
def test_a_dry_run_says_what_the_cell_would_do(arguments):
    text = launch("--dry-run", *arguments, **environment())
    assert f"model          {MODELS[arguments[0]]}" in text and "published; at most" in text
    assert "batch          32 prompts x 8 rollouts" in text


# --------------------------------------------------------------------------------------------- docs/reproduction.md

PAPER = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs" / "results").glob("paper_*.json")}
ARGUMENTS = sorted({row[1].strip("`") for one in PAPER.values() for row in one["rows"] if row[1].startswith("`")})


def test_the_page_lists_every_cell():
    for model in MODELS:
        rows = {row[1] for row in PAPER[f"paper_{model}"]["rows"]}
        assert rows == {
            f"`{model} {task} {method}`" for task in TASKS for method in ("base", "grpo", "sdpo", "srpo")
        } | {"the five above"}
    assert len(ARGUMENTS) == 40 + 5 + 3


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_arguments_of_a_cell_are_taken(arguments):
    assert overrides(*shlex.split(arguments.replace("OPTIONS", "--nodes=1")))


@pytest.mark.parametrize("model", MODELS)
def test_the_papers_averages_are_those_of_its_cells(model):
    """A digit that was copied wrongly would show: averages are given to a tenth, of cells rounded to a tenth."""
    rows = {row[0]: [float(part) for part in row[2].split("/")] for row in PAPER[f"paper_{model}"]["rows"]}
    names = ("Chemistry", "Physics", "Biology", "Materials", "Tool Use")
    for method in ("base", "grpo", "sdpo", "srpo"):
        for place, average in enumerate(rows[f"average, {method}"]):
            mean = sum(rows[f"{name}, {method}"][place] for name in names) / 5
            assert abs(mean - average) < 0.1 + 1e-9, (method, place, mean)
