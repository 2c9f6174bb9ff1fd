"""What a run ends with: accuracy before and after, the routed share by step, a picture, and one JSON object for
scripts."""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.records.files import write_whole
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.curve import draw_run, title
from srpo_recipe.run.series import TRAINED, held_out_key, held_out_name, series


def summarise(config: DictConfig) -> dict[str, Any]:
    """Draw the curve, print what a reader wants first, and return the object that is printed last. Writes summary.json.

    Raises RuntimeError as `measure` does.
    """
    summary = measure(config)
    lines = read_lines(summary["metrics"])
    if summary["plot"]:
        draw_run(lines, Path(summary["plot"]), title(config))
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
