"""What a run ends with: accuracy before and after, the routed share by step, a picture, and one JSON object for
scripts."""

import json
import re
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.records.figures import pyplot
from srpo_recipe.records.files import write_whole
from srpo_recipe.records.metrics_file import read_lines

HELD_OUT = re.compile(r"^val-core/(?P<source>.+)/(acc|reward)/mean@(?P<k>\d+)$")
TRAINED = "route/distill_share"  # in every line of a training step and in no other


def series(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one metric, where it was logged."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def held_out_key(lines: list[dict]) -> str | None:
    """Name of the held-out accuracy (avg@k) among the metrics; the first data source where there are several."""
    return next((key for line in lines for key in sorted(line) if HELD_OUT.match(key)), None)


def held_out_name(key: str) -> str:
    """`avg@k on SOURCE` for a key that `held_out_key` found."""
    match = HELD_OUT.match(key)
    assert match, key
    return f"avg@{match['k']} on {match['source']}"


def summarise(config: DictConfig) -> dict[str, Any]:
    """Draw the curve, print what a reader wants first, and return the object that is printed last. Writes summary.json.

    Raises RuntimeError as `measure` does.
    """
    summary = measure(config)
    lines = read_lines(summary["metrics"])
    if summary["plot"]:
        draw_run(lines, summary["metric"], Path(summary["plot"]), f"{summary['method']}, seed {summary['seed']}")
    write_whole(Path(config.run.dir) / "summary.json", json.dumps(summary, indent=1) + "\n")
    _show(summary, [line[TRAINED] for line in lines if TRAINED in line], config.trainer.default_local_dir)
    return summary


def measure(config: DictConfig) -> dict[str, Any]:
    """The summary of the metrics that the run has logged so far.

    A run that only validated (trainer.val_only) has its accuracy, no step and no curve. Raises RuntimeError for a run
    that logged neither a training step nor a held-out accuracy.
    """
    run_dir = Path(config.run.dir)
    metrics_path, plot_path = run_dir / "metrics.jsonl", run_dir / "curve.png"
    lines = read_lines(metrics_path)
    train = [line for line in lines if TRAINED in line]
    key = held_out_key(lines)
    if not train and not key:
        raise RuntimeError(
            f"{metrics_path} holds no training step and no held-out accuracy; was trainer.total_training_steps already "
            "reached?"
        )
    accuracy = series(lines, key)[1] if key else []
    rule = config.srpo.verifier
    return {
        "method": config.method.name,
        "seed": config.srpo.seed,
        "steps": train[-1]["step"] if train else lines[-1]["step"],
        "before": accuracy[0] if accuracy else None,
        "after": accuracy[-1] if accuracy else None,
        "metric": key,
        "verifier": f"{rule.name}, {rule.mode}" if rule.name is not None else None,
        "seconds": round(train[-1]["run/seconds_since_start"] if train else time.time() - config.run.started_at, 1),
        "first_step_seconds": round(train[0]["run/seconds_since_start"], 1) if train else None,
        "routed_share_first": train[0][TRAINED] if train else None,
        "routed_share_last": train[-1][TRAINED] if train else None,
        "metrics": str(metrics_path),
        "plot": str(plot_path) if train else None,
    }


def _show(summary: dict[str, Any], shares: list[float], weights: str) -> None:
    """Print the summary for a reader. shares: the routed share of each training step."""
    if shares:
        shown = [shares[i] for i in range(0, len(shares), max(1, len(shares) // 10))]
        print(f"routed share by step ({len(shares)} steps): " + " ".join(f"{share:.0%}" for share in shown))
    if key := summary["metric"]:
        by = f" by the verifier {summary['verifier']}" if summary["verifier"] else ""
        before, after, step = summary["before"], summary["after"], summary["steps"]
        found = (
            f"{before:.1%} before, {after:.1%} after" if shares else f"{after:.1%} at step {step}, nothing was trained"
        )
        print(f"held-out {held_out_name(key)}{by}: {found}")
    print(f"metrics {summary['metrics']}")
    if shares:
        print(f"curve   {summary['plot']}\nweights {weights}")


def draw_run(lines: list[dict], key: str | None, path: Path, title: str) -> None:
    """Accuracy and routed share above, teacher entropy and response length below, against steps."""
    plt = pyplot()
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 7), sharex=True)
    top.plot(*series(lines, "route/correct_share"), color="0.6", label="training, correct")
    if key:
        top.plot(*series(lines, key), "o-", color="tab:green", label=f"held out, {held_out_name(key)}")
    top.plot(*series(lines, "route/distill_share"), "--", color="tab:red", label="routed to the self-teacher")
    top.set(ylim=(0, 1), title=title, ylabel="share")
    top.legend()
    bottom.plot(*series(lines, "actor/distill/teacher_entropy"), color="tab:orange", label="teacher entropy (nats)")
    bottom.set(xlabel="step", ylabel="nats", ylim=(0, None))
    lengths = bottom.twinx()
    lengths.plot(*series(lines, "route/response_length"), color="tab:blue", label="response length")
    lengths.set(ylabel="tokens", ylim=(0, None))
    handles = bottom.get_lines() + lengths.get_lines()
    bottom.legend(handles, [line.get_label() for line in handles], loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
