"""The picture of a run, RUN/curve.png, drawn again at every validation: a run that is under way or was cut has one."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.records.figures import pyplot
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.say import say
from srpo_recipe.run.series import HELD_OUT, TRAINED, held_out_key, held_out_name, series

# Of each panel: label on the left, label on the right, and metric, label, style; what lies on the right begins with ">".
_PANELS = (
    (
        "nats",
        "tokens",
        (
            ("actor/distill/teacher_entropy", "teacher entropy (nats)", "tab:orange"),
            (">route/response_length", "response length", "tab:blue"),
        ),
    ),
    ("loss", "norm", (("actor/loss", "loss", "tab:purple"), (">actor/grad_norm", "gradient's norm", "0.5"))),
    (
        "share of tokens",
        "",
        (
            ("actor/policy/clip_fraction", "ratio clipped", "tab:brown"),
            ("actor/policy/dual_clip_fraction", "dual clip", "tab:pink"),
        ),
    ),
)


def title(config: DictConfig) -> str:
    return f"{config.method.name} on {config.task.name}, seed {config.srpo.seed} ({config.run.name})"


def draw_run(lines: list[dict], path: Path, title: str) -> None:
    """Accuracy and routed share; teacher entropy and response length; loss and gradient's norm; clip shares: against steps."""
    plt = pyplot()
    figure, (top, *others) = plt.subplots(1 + len(_PANELS), 1, figsize=(7, 12), sharex=True)
    top.plot(*series(lines, "route/correct_share"), color="0.6", label="training, correct")
    if key := held_out_key(lines):
        top.plot(*series(lines, key), "o-", color="tab:green", label=f"held out, {held_out_name(key)}")
    top.plot(*series(lines, "route/distill_share"), "--", color="tab:red", label="routed to the self-teacher")
    top.set(ylim=(0, 1), title=title, ylabel="share")
    top.legend()
    for axes, (left, right, curves) in zip(others, _PANELS, strict=True):
        _panel(axes, lines, left, right, curves)
    others[-1].set(xlabel="step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axes: Any, lines: list[dict], left: str, right: str, curves: tuple) -> None:
    axes.set(ylabel=left)
    sides = [axes]
    if right:
        sides.append(axes.twinx())
        sides[1].set(ylabel=right)
    drawn = []
    for metric, label, color in curves:
        side = sides[metric.startswith(">")]
        steps, values = series(lines, metric.lstrip(">"))
        drawn += side.plot(steps, values, color=color, label=label)
        if min(values, default=0.0) >= 0:
            side.set_ylim(0, max(side.get_ylim()[1], 1.1 * max(values, default=1.0)))
    axes.legend(handles=drawn, loc="best")


class Curve:
    """A backend of verl's Tracking, behind the one that writes metrics.jsonl: draws the picture when a validation is logged."""

    def __init__(self, config: DictConfig):
        self.config = config

    def log(self, data: dict[str, Any], step: int) -> None:
        if not any(HELD_OUT.match(key) for key in data):
            return
        lines = read_lines(f"{self.config.run.dir}/metrics.jsonl")
        if any(TRAINED in line for line in lines):
            try:
                draw_run(lines, Path(self.config.run.dir) / "curve.png", title(self.config))
            except OSError as error:  # the run itself is well
                say(f"WARNING the curve of step {step} could not be drawn: {error}")
