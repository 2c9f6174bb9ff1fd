"""The protocol of docs/study.md as data: which runs there are, in which order, and the command of each.

Two stages a task. `choose`: one run for every arm that has a rate of its own and every rate, on a seed that is not reported,
judged on the validation problems. `report`: every arm at its rate, several seeds, judged on the test problems.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

CHOOSE, REPORT = "choose", "report"
OUT = Path("outputs/study")  # where runs lie unless somebody says otherwise, and in the commands that records show


@dataclass(frozen=True)
class Arm:
    """One of the methods compared. overrides: what makes it; rate_of: the arm whose chosen learning rate it takes."""

    overrides: tuple[str, ...]
    rate_of: str


ARMS = {
    "grpo4": Arm(("method=grpo",), "grpo4"),
    "grpo1": Arm(("method=grpo", "method.optimizer_steps=1"), "grpo1"),
    "sdpo": Arm(("method=sdpo",), "sdpo"),
    "srpo": Arm(("method=srpo",), "srpo"),
    "advantage_mix": Arm(("method=advantage_mix",), "advantage_mix"),
    # An ablation changes one thing: these keep the rate of the method that they are a part of.
    "srpo_no_dw": Arm(("method=srpo_no_dw",), "srpo"),
    "sdpo_incorrect_only": Arm(("method=sdpo_incorrect_only",), "sdpo"),
    "sdpo_correct_only": Arm(("method=sdpo_correct_only",), "sdpo"),
}
# They belong to no claim.
BESIDE = ("sdpo_incorrect_only", "sdpo_correct_only")


@dataclass(frozen=True)
class TaskPlan:
    """What is run on one task: its arms and the seeds that are reported; of the arms in `beside` the first three."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    beside: tuple[str, ...] = ()

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.seeds[:3] if arm in self.beside else self.seeds

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms that choose a learning rate."""
        return tuple(dict.fromkeys(ARMS[arm].rate_of for arm in self.arms))


@dataclass(frozen=True)
class Protocol:
    """Everything that the study fixes before its runs. sizes: of train, validation and test, in problems."""

    tasks: tuple[tuple[str, TaskPlan], ...] = (
        ("sums", TaskPlan(tuple(ARMS), (1, 2, 3, 4, 5), BESIDE)),
        ("picks", TaskPlan(("grpo1", "srpo", "srpo_no_dw"), (1, 2, 3))),
    )
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    choice_seed: int = 101
    choose_steps: int = 40
    report_steps: int = 120
    test_every: int = 10
    prompts: int = 8
    samples: int = 2
    sizes: tuple[int, int, int] = (4096, 128, 128)
    model_steps: int = 400  # of the warm start for picks

    @property
    def early(self) -> tuple[int, ...]:
        """The validations that early speed is the mean of."""
        return tuple(self.test_every * number for number in (1, 2, 3))

    @property
    def late(self) -> tuple[int, ...]:
        """The validations that late accuracy is the mean of."""
        return (self.report_steps - self.test_every, self.report_steps)

    @property
    def judged(self) -> tuple[int, ...]:
        """The validations of a run of `choose` that decide."""
        return (self.choose_steps - self.test_every, self.choose_steps)


STUDY = Protocol()
# Tries the machinery in minutes; nothing of it counts.
QUICK = replace(
    STUDY,
    tasks=(("sums", TaskPlan(("grpo1", "srpo"), (1, 2))),),
    rates=(1e-4, 3e-4),
    choose_steps=2,
    report_steps=4,
    test_every=1,
    prompts=2,
    samples=1,
    sizes=(64, 8, 8),
)


@dataclass(frozen=True)
class Run:
    """One run of the study; its folder is OUT/STAGE-TASK/NAME."""

    stage: str
    task: str
    arm: str
    rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.arm}-lr{self.rate:g}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        return out / f"{self.stage}-{self.task}" / self.name


def choosing(protocol: Protocol) -> Iterator[Run]:
    """The runs of `choose`, one rate after the other."""
    for task, plan in protocol.tasks:
        for rate in protocol.rates:
            for arm in plan.tuned:
                yield Run(CHOOSE, task, arm, rate, protocol.choice_seed, protocol.choose_steps)


def reporting(protocol: Protocol, chosen: Mapping[tuple[str, str], float]) -> Iterator[Run]:
    """The runs of `report`, one seed after the other, so that the arms of a seed run under the same conditions.

    chosen: the rate of every (task, arm) that chose one.
    """
    for task, plan in protocol.tasks:
        for seed in plan.seeds:
            for arm in (arm for arm in plan.arms if seed in plan.seeds_of(arm)):
                rate = chosen[task, ARMS[arm].rate_of]
                yield Run(REPORT, task, arm, rate, seed, protocol.report_steps)


def overrides(run: Run, protocol: Protocol, out: Path) -> list[str]:
    """The run's Hydra overrides."""
    train, validation, test = protocol.sizes
    data = out / "data" / run.task
    found = [
        *ARMS[run.arm].overrides,
        f"task={run.task}",
        "hardware=cpu",
        f"actor_rollout_ref.actor.optim.lr={run.rate:g}",
        f"srpo.seed={run.seed}",
        f"data.train_batch_size={protocol.prompts}",
        f"actor_rollout_ref.rollout.val_kwargs.n={protocol.samples}",
        f"trainer.total_training_steps={run.steps}",
        f"trainer.test_freq={protocol.test_every}",
        "trainer.save_freq=40",
        "trainer.max_actor_ckpt_to_keep=1",
        f"task.dir={data}",
        f"task.generate.train_size={train}",
        f"task.generate.validation_size={validation}",
        f"task.generate.test_size={test}",
        f"run.root={run.folder(out).parent}",
        f"run.name={run.name}",
    ]
    if run.task == "picks":
        found += ["model=path", f"actor_rollout_ref.model.path={model(out)}"]
        found += ["actor_rollout_ref.model.enable_gradient_checkpointing=false"]
    if run.stage == CHOOSE:
        found += [f"data.val_files={data}/validation.parquet", "trainer.val_before_train=false"]
    return found


def command(run: Run, protocol: Protocol, out: Path) -> list[str]:
    """The run's command line."""
    return ["bash", "scripts/train.sh", *overrides(run, protocol, out)]


def settings(protocol: Protocol) -> dict[str, Any]:
    """What every record says of the protocol, as JSON holds it: all but the list of runs."""
    found = asdict(protocol)
    del found["tasks"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def model(out: Path) -> Path:
    """Where the model for picks lies."""
    return out / "models" / "tiny_picks"


def model_recipe(protocol: Protocol) -> dict[str, Any]:
    """The options of `python -m srpo_recipe.starter.tiny` that make the model for picks."""
    start = "srpo_recipe/assets/tiny_qwen3"
    return {"task": "picks", "start": start, "steps": protocol.model_steps, "lr": 0.001, "slip": 0.45, "seed": 0}
