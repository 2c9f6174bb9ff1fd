"""What a run ends with: accuracy before and after, the routed share by step, a picture, and one JSON object for scripts."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.records.figures import _pyplot
from srpo_recipe.records.metrics_file import read_lines

HELD_OUT = re.compile(r"^val-core/(?P<source>.+)/(acc|reward)/mean@(?P<k>\d+)$")


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
    """Draw the curve, print what a reader wants first, and return the object that is printed last. Writes summary.json."""
    run_dir = Path(config.run.dir)
    metrics_path, plot_path = run_dir / "metrics.jsonl", run_dir / "curve.png"
    lines = read_lines(metrics_path)
    train = [line for line in lines if "route/distill_share" in line]
    if not train:
        raise RuntimeError(f"{metrics_path} holds no training step; was trainer.total_training_steps already reached?")
    key = held_out_key(lines)
    _, accuracy = series(lines, key) if key else ([], [])
    _, shares = series(lines, "route/distill_share")
    rule = config.srpo.verifier
    verifier = f"{rule.name}, {rule.mode}" if rule.name is not None else None
    summary = {
        "method": config.method.name,
        "seed": config.srpo.seed,
        "steps": train[-1]["step"],
        "before": accuracy[0] if accuracy else None,
        "after": accuracy[-1] if accuracy else None,
        "metric": key,
        "verifier": verifier,
        "seconds": round(train[-1]["run/seconds_since_start"], 1),
        "first_step_seconds": round(train[0]["run/seconds_since_start"], 1),
        "routed_share_first": shares[0],
        "routed_share_last": shares[-1],
        "metrics": str(metrics_path),
        "plot": str(plot_path),
    }
    draw_run(lines, key, plot_path, f"{summary['method']}, seed {summary['seed']}")
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    shown = [shares[i] for i in range(0, len(shares), max(1, len(shares) // 10))]
    print(f"routed share by step ({len(shares)} steps): " + " ".join(f"{share:.0%}" for share in shown))
    if key:
        by = f" by the verifier {verifier}" if verifier else ""
        print(f"held-out {held_out_name(key)}{by}: {accuracy[0]:.1%} before, {accuracy[-1]:.1%} after")
    print(f"metrics {metrics_path}\ncurve   {plot_path}\nweights {config.trainer.default_local_dir}")
    return summary


def draw_run(lines: list[dict], key: str | None, path: Path, title: str) -> None:
    """Accuracy and routed share above, teacher entropy and response length below, against steps."""
    plt = _pyplot()
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
