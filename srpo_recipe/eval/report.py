"""What an evaluation ends with: results.json and results.md, and a picture of pass@k."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.eval.estimators import Estimate, Samples, estimate
from srpo_recipe.records.figures import pyplot
from srpo_recipe.records.files import write_whole

TOO_LONG = "prompt_too_long"
COLUMNS = ["task", "questions", "k", "avg@k", "pass@k", "maj@k", "truncated", "unparsed"]
COLUMNS += ["tokens: mean, median, p95", "verifier", "failed verifications"]
DIGITS = 6  # of the numbers in results.json; the last ones of a float may differ between machines


def summarise(lines: Sequence[dict[str, Any]], rules: dict[str, dict[str, Any]], threshold: float, seed: int) -> dict:
    """The numbers of each task, in the order in which tasks come up. lines: of samples.jsonl, all of them; rules: what judges
    each task; threshold: the reward from which a sample is right; seed: of the bootstrap."""
    tasks: dict[str, list[dict]] = {}
    for line in lines:
        tasks.setdefault(line["task"], []).append(line)
    return {task: _task(own, rules[task], threshold, seed) for task, own in tasks.items()}


def _task(lines: list[dict[str, Any]], rule: dict[str, Any], threshold: float, seed: int) -> dict[str, Any]:
    questions: dict[tuple, list[dict]] = {}
    for line in lines:
        questions.setdefault((line["file"], line["row"]), []).append(line)
    votes = not any(line["parsed"] and line["answer"] is None for line in lines)  # else the rule reports no answers
    samples = [
        Samples([line["reward"] for line in own], [line["answer"] for line in own] if votes else None)
        for own in questions.values()
    ]
    asked = [line for line in lines if line["finish"] != TOO_LONG]
    lengths = np.array([line["tokens"] for line in asked] or [0])
    failures = Counter(line["failure"] for line in lines if line["failure"])
    return {
        "questions": len(questions),
        "samples_per_question": len(samples[0].rewards),
        "verifier": rule,
        **{name: _rounded(one) for name, one in estimate(samples, threshold, seed).items()},
        "truncated_share": _share(line["finish"] == "length" for line in asked),
        "unparsed_share": _share(not line["parsed"] for line in asked),
        "length": {
            "mean": round(float(lengths.mean()), DIGITS),
            "median": float(np.median(lengths)),
            "p95": float(np.percentile(lengths, 95)),
        },
        "verification_failures": dict(sorted(failures.items())),
        TOO_LONG: [f"{file} row {row}" for (file, row), own in questions.items() if own[0]["finish"] == TOO_LONG],
    }


def _rounded(one: Estimate) -> dict[str, float]:
    return {name: round(getattr(one, name), DIGITS) for name in ("value", "low", "high")}


def _share(flags) -> float:
    listed = list(flags)
    return round(sum(listed) / len(listed), DIGITS) if listed else 0.0


def write(folder: Path, settings: dict[str, Any], tasks: dict[str, Any]) -> str:
    """Write results.json, results.md and pass_at_k.png into the folder; returns the Markdown."""
    write_whole(folder / "results.json", json.dumps({"settings": settings, "tasks": tasks}, indent=1) + "\n")
    text = markdown(settings, tasks)
    write_whole(folder / "results.md", text)
    draw(tasks, folder / "pass_at_k.png")
    return text


def markdown(settings: dict[str, Any], tasks: dict[str, Any]) -> str:
    """Two tables, in percent with 95 % intervals, and what a reader has to know beside them."""
    weights = f", {settings['weights']}" if settings["weights"] else ""
    lines = [
        f"Model: {settings['model']}{weights} (sha256 {settings['model_sha256'][:12]}). "
        f"{settings['n']} samples a question, temperature {settings['temperature']}, top-p {settings['top_p']}, "
        f"at most {settings['max_tokens']} tokens, seed {settings['seed']}. "
        "In percent, with 95 % bootstrap intervals over the questions.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for task, found in tasks.items():
        k, length = found["samples_per_question"], found["length"]
        failures = ", ".join(f"{count} {cause}" for cause, count in found["verification_failures"].items()) or "none"
        cells = [
            task,
            str(found["questions"]),
            str(k),
            *(_cell(found.get(f"{name}@{k}")) for name in ("avg", "pass", "maj")),
            f"{found['truncated_share']:.1%}",
            f"{found['unparsed_share']:.1%}",
            f"{length['mean']:.1f}, {length['median']:.0f}, {length['p95']:.0f}",
            f"{found['verifier']['name']}, {found['verifier']['mode']}",
            failures,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for task, found in tasks.items():
        names = [name for name in found if name.startswith("pass@")]
        lines += ["", f"| {task} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines.append(f"| | {' | '.join(_cell(found[name]) for name in names)} |")
    for task, found in tasks.items():
        if found[TOO_LONG]:
            lines += ["", f"{task}: {len(found[TOO_LONG])} prompts were too long to ask and count as wrong: "]
            lines[-1] += "; ".join(found[TOO_LONG])
    return "\n".join(lines) + "\n"


def _cell(one: dict[str, float] | None) -> str:
    if one is None:
        return "-"
    return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def draw(tasks: dict[str, Any], path: Path) -> None:
    """pass@k against k, a line and a band for each task."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for task, found in tasks.items():
        curve = {int(name.removeprefix("pass@")): one for name, one in found.items() if name.startswith("pass@")}
        ks = sorted(curve)
        (line,) = axis.plot(ks, [curve[k]["value"] for k in ks], "o-", label=task)
        axis.fill_between(
            ks, *([curve[k][end] for k in ks] for end in ("low", "high")), color=line.get_color(), alpha=0.2
        )
    axis.set_xscale("log", base=2)
    axis.set(xlabel="k", ylabel="pass@k", ylim=(0, 1), title="pass@k, 95 % interval over questions")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
