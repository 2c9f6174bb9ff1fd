"""A whole step beside stock verl's GRPO: rollouts that vLLM makes, verification, training and weight sync, by part.

benchmarks/step.py --whole runs it. Every rollout has as many tokens (`ignore_eos`), and a reward function of the benchmark's own
(verdicts.py) fails the wanted share of them beside correct siblings. A step's seconds are those from one line of the log to the
next, so nothing is left out; a checkpoint, written at the end of a run, counts as one in SAVE_EVERY steps.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from environment import said, spread
from replay import failures
from runs import HERE, Setting, overrides, program, run
from verdicts import times
from workload import write_model, write_prompts

from srpo_recipe.records.figures import pyplot
from srpo_recipe.records.results import write_results

SHARES = [0.4, 0.2, 0.05, 0.0]
SAVE_EVERY = 20  # steps, as config/task has it
# part of a step -> verl's timer; the self-teacher has the one of verl's reference model
TIMERS = {
    "log-prob": "old_log_prob",
    "routing": "route",
    "teacher": "ref",
    "advantages": "adv",
    "update": "update_actor",
    "samples": "samples",
    "weight sync": "update_weights",
    "checkpoint": "save_checkpoint",
}
PARTS = ("generation", "verification", "waiting", *TIMERS, "rest")
SMALL = ("advantages", "samples", "checkpoint", "rest")  # one column of the table


def measure(
    setting: Setting,
    shares: Sequence[float],
    repeats: int,
    hardware: str,
    runs: Sequence[str] = ("stock", "srpo", "stock"),
) -> Iterator[dict]:
    """Rows of figures, from these runs, one after the other.

    SRPO makes `repeats` steps of every share in turn, stock GRPO, to which they are alike, as many of the first share, spread
    over its runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="srpo_whole_"))
    write_model(folder / "model", setting.size, seed=0)
    found: dict[tuple[str, float], list[dict]] = {}
    for number, method in enumerate(runs):
        each = list(shares) if method == "srpo" else [shares[0]]
        plan = [each[0], *each * -(-repeats // list(runs).count(method))]  # the first warms up
        steps = train(method, plan, f"{number}_{method}", setting, folder, hardware)
        saved = [step["checkpoint"] for step in steps if step["checkpoint"]]
        for share, step in zip(plan[1:], steps, strict=True):
            found.setdefault((method, share), []).append({**step, "checkpoint": median(saved) / SAVE_EVERY})
    shutil.rmtree(folder)  # a failed run leaves its logs
    for (method, share), steps in found.items():
        yield row(setting, method, share, steps, found["stock", shares[0]])


def train(method: str, plan: Sequence[float], name: str, setting: Setting, folder: Path, hardware: str) -> list[dict]:
    """One run over a plan of failed shares. Returns seconds by part, and the teacher's rows, of every step but the first.

    Raises RuntimeError where rollouts are not of the wanted length or were not verified once each.
    """
    rows, prompts, answers = setting.prompts * setting.rollouts, folder / f"{name}.parquet", folder / f"{name}_verdicts"
    truths = [failed for share in plan for failed in failures(share, rows, setting.prompts)]
    write_prompts(prompts, len(truths), setting.prompt, setting.size.vocabulary, 0, truths)
    given = [*overrides(setting, folder, hardware), *asked(method, prompts, answers, len(plan))]
    metrics = run([*program(method), *given], name, len(plan), folder)
    stamps = logged(folder / f"{name}_events")
    found = []
    for number in range(1, len(plan)):
        values = metrics[number]
        lengths = {values[f"response_length/{end}"] for end in ("min", "max")}
        if lengths != {setting.response}:
            raise RuntimeError(
                f"{name}, step {number + 1}: responses of {lengths} tokens instead of {setting.response}"
            )
        mine = range(number * setting.prompts, (number + 1) * setting.prompts)
        verified = times(answers, mine, setting.rollouts)
        step = parts(values, stamps[number - 1], stamps[number], verified)
        found.append({**step, "teacher rows": values.get("teacher/rows_routed", 0)})
    return found


def asked(method: str, prompts: Path, answers: Path, steps: int) -> list[str]:
    """Hydra overrides beside those of every benchmark of the step. answers: the folder that the verdicts are left in."""
    given = [
        f"data.train_files={prompts}",
        f"data.val_files={prompts}",
        "data.shuffle=false",
        f"reward.custom_reward_function.path={HERE}/verdicts.py",
        "reward.custom_reward_function.name=verdict",
        f"+reward.custom_reward_function.reward_kwargs.folder={answers}",
        f"trainer.save_freq={steps}",
        "trainer.logger=[file,tensorboard]",
    ]
    # the limits on a reward function are the recipe's
    return [*given, "srpo.verifier.limits=false"] if method == "stock" else given


def logged(events: Path) -> list[float]:
    """When each step was logged, in seconds since the epoch, from what a run wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events))
    read.Reload()
    return [event.wall_time for event in read.Scalars("timing_s/step")]


def parts(values: dict, begun: float, ended: float, verified: tuple[float, float]) -> dict[str, float]:
    """Seconds of a step by part, which together are ended - begun.

    values: verl's metrics; begun, ended: when the step before and this one were logged; verified: when the first verdict began
    and the last ended, all in seconds since the epoch. What of the rollouts comes after the last verdict is waiting: storing
    them and the trainer's asking for them.
    """
    found = {part: values.get(f"timing_s/{timer}", 0.0) for part, timer in TIMERS.items()}
    found["update"] -= found["samples"]  # written within its timer
    rollouts, verification = values["timing_s/gen"], verified[1] - verified[0]
    waiting = max(0.0, rollouts - verification - (verified[0] - begun))
    found |= {"generation": rollouts - verification - waiting, "verification": verification, "waiting": waiting}
    return {**found, "rest": ended - begun - sum(found.values())}


def row(setting: Setting, method: str, share: float, steps: list[dict], stock: list[dict]) -> dict:
    """One line of the output. steps, stock: seconds by part of the steps of this kind and of stock GRPO's."""

    def ratio(left_out: Sequence[str]) -> dict[str, float]:
        reference = median(seconds(step, left_out) for step in stock)
        return spread([seconds(step, left_out) / reference for step in steps])

    return {
        "benchmark": "whole step",
        "method": "grpo (stock verl)" if method == "stock" else method,
        "failed_share": None if method == "stock" else share,
        "ranks": setting.ranks,
        "rows": setting.prompts * setting.rollouts,
        "prompt": setting.prompt,
        "response": setting.response,
        "teacher_rows": steps[0]["teacher rows"],
        "steps": len(steps),
        "seconds": spread([seconds(step) for step in steps]),
        "parts": {part: spread([step[part] for step in steps])["median"] for part in PARTS},
        "ratio_to_stock": ratio(()),
        "ratio_without_waiting": ratio(("waiting",)),
    }


def seconds(step: dict, left_out: Sequence[str] = ()) -> float:
    """Of a step, without some of its parts."""
    return sum(step[part] for part in PARTS if part not in left_out)


def label(row: dict) -> str:
    """What a row is called in the table and in the picture."""
    if row["failed_share"] is None:
        return f"stock GRPO, {row['ranks']} rank{'s' * (row['ranks'] > 1)}"
    return f"{row['method'].upper()}, {row['failed_share']:.0%} failed, {row['teacher_rows']:.0f} teacher rows"


def plot(rows: list[dict], file: Path) -> None:
    """Where the seconds go: a bar for each row, a colour for each part."""
    figure, axes = pyplot().subplots(figsize=(9, 1.2 + 0.45 * len(rows)), constrained_layout=True)
    colors = pyplot().get_cmap("tab20").colors
    names = [f"{label(row)}: {row['ratio_to_stock']['median']:.2f}" for row in rows]
    left = [0.0] * len(rows)
    for part, color in zip(PARTS, colors, strict=False):
        width = [max(0.0, row["parts"][part]) for row in rows]
        axes.barh(names, width, left=left, color=color, label=part)
        left = [start + more for start, more in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step (medians by part; beside the name the ratio to stock GRPO)")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(file, dpi=110)


def write_table(rows: list[dict], file: Path) -> None:
    """The table of docs/performance.md as a file of results."""
    shown = [part for part in PARTS if part not in SMALL]
    lines = []
    for row in rows:
        figures = [row[key] for key in ("seconds", "ratio_to_stock", "ratio_without_waiting")]
        total, *ratios = map(said, figures)
        cells = [f"{row['parts'][part]:.2f}" for part in shown]
        rest = f"{sum(row['parts'][part] for part in SMALL):.2f}"
        lines.append([label(row), total, *cells, rest, *ratios])
    columns = ["", "seconds", *shown, "rest", "ratio", "ratio without waiting"]
    write_results(file, "A whole step beside stock verl's GRPO, seconds by part", columns, lines, [0])
