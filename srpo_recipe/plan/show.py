"""The plan as text and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo_recipe.plan import memory
from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.device import Device
from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.plan import WORLDS, scaled
from srpo_recipe.plan.setup import Setup
from srpo_recipe.records.figures import pyplot


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(["", row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}" if value else "-"


def _adapter(adapter: dict[str, Any] | None) -> list[str]:
    """What is trained, and what was assumed of modules whose shapes are not known."""
    if adapter is None:
        return []
    lines = [
        f"Adapters of rank {adapter['rank']} on {adapter['linear layers']} linear layers ({', '.join(adapter['names'])}): "
        f"{adapter['parameters'] / 1e6:.4g} million parameters are trained"
    ]
    if adapter["not known"]:
        lines.append(
            f"  target_modules names {', '.join(adapter['not known'])}, whose shapes are not known here: "
            "all linear layers are counted"
        )
    return lines


def _memory(found: dict[str, Any]) -> list[str]:
    phases, model, device = found["phases"], found["model"], found["device"]
    items = [item for item in memory.ITEMS if any(phase[item] for phase in phases.values())]
    rows = [["GiB a rank", *phases]]
    rows += [[item, *(_gib(phase[item]) for phase in phases.values())] for item in items]
    rows += [["all", *(_gib(total) for total in found["totals"].values())]]
    verdict = ["It fits."]
    if not found["fits"]:
        verdict = ["It does not fit:", *(f"  - {problem}" for problem in found["problems"])]
    return [
        f"{model['name']}: {model['parameters'] / 1e9:.4g} billion parameters, from {model['source']}",
        *_adapter(found["adapter"]),
        f"{found['ranks']} rank(s), each copy of the weights on {found['shards']}"
        f"{', each sequence on ' + str(found['split']) if found['split'] > 1 else ''}; {device['bytes'] / GIB:.1f} GiB a rank "
        f"({device['source']}), {device['reserve'] / GIB:.1f} of them kept back",
        "",
        "Memory, with every response at its full length:",
        _table(rows),
        "",
        *verdict,
        f"Host memory a node, for loading and what is offloaded: {found['host bytes a node'] / GIB:.1f} GiB. "
        f"One checkpoint: {found['checkpoint bytes'] / GIB:.1f} GiB.",
    ]


def _flow(found: dict[str, Any]) -> list[str]:
    work, micro, rollout = (found[key] for key in ("step", "micro-batch", "rollout"))
    expected = work["expected"]
    parts = [[name, f"{value:.2f}"] for name, value in work["F a token"].items() if value]
    return [
        f"Rollout: {rollout['rollouts an engine']:g} rollouts an engine, {rollout['running at once']:g} running at once, "
        f"at most {rollout['tokens in flight at most']:,.0f} tokens in flight;",
        f"  the cache holds {rollout['cache in tokens']:,.0f} tokens, {rollout['longest rollouts that fit']:.1f} rollouts of "
        "full length.",
        f"Micro-batch: {micro['configured tokens']:,} tokens configured; at most {micro['most tokens that fit']:,} fit; "
        f"recommended ppo_max_token_len_per_gpu={micro['recommended tokens']}.",
        "",
        f"A step without its rollout, in F (a forward pass of one token), for prompts of {expected['prompt']:g} and responses",
        f"of {expected['response']:g} tokens, {expected['routed']:.0%} of the rollouts on the self-teacher's route:",
        _table([*parts, ["all", f"{work['F a token, all']:.2f}"]]),
        f"  {work['tokens']:,.0f} tokens a batch, {work['PFLOP']:.3g} PFLOP",
    ]


def _growth(found: dict[str, Any]) -> list[str]:
    rows = [["ranks", "GiB", "fullest phase", "GiB in training", "fits", "rollouts a rank"]]
    for row in found["growth"]:
        fits = "yes" if row["fits"] else "no"
        gib = [_gib(row[key]) for key in ("bytes", "training bytes")]
        rows.append([str(row["ranks"]), gib[0], row["phase"], gib[1], fits, f"{row['rollouts a rank']:g}"])
    lines = ["The same run on other numbers of ranks:", _table(rows)]
    uneven = ", ".join(str(row["ranks"]) for row in found["growth"] if row["batch"] != "as it is")
    return [*lines, f"  The batch cannot be dealt to {uneven} ranks; raise data.train_batch_size."] if uneven else lines


def text(found: dict[str, Any]) -> str:
    """The plan for people."""
    return "\n".join([*_memory(found), "", *_flow(found), "", *_growth(found)])


def check_picture(file: str) -> None:
    """Raise ValueError, with the fix, for a place where no picture can be written, before anything is planned."""
    ending = Path(file).suffix.lower().removeprefix(".")
    known = pyplot().figure().canvas.get_supported_filetypes()
    pyplot().close("all")
    if ending not in known:
        raise ValueError(f"--plot {file}: name a file that ends in one of .{', .'.join(sorted(known))}")
    if not Path(file).absolute().parent.is_dir():
        raise ValueError(f"--plot {file}: the folder {Path(file).parent} is not there; make it first")


def picture(arch: Architecture, setup: Setup, device: Device, file: str) -> None:
    """Stacked bars of the fullest training phase by item against the number of ranks, with the device's memory as a line."""
    plt = pyplot()
    worlds = [world for world in WORLDS if world % setup.tensor_parallel == 0]
    columns = []
    for world in worlds:
        other = scaled(setup, world)
        phases = memory.phases(arch, other, device.bytes, device.reserve)
        columns.append(max((phases[name] for name in memory.PHASES), key=lambda items: sum(items.values())))
    figure, axes = plt.subplots(figsize=(8, 4.5))
    bottom = [0.0] * len(worlds)
    for item in memory.ITEMS:
        heights = [column[item] / GIB for column in columns]
        if any(heights):
            axes.bar([str(world) for world in worlds], heights, bottom=bottom, label=item)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.axhline(
        device.bytes / GIB, color="black", linestyle="--", linewidth=1, label=f"device, {device.bytes / GIB:.0f} GiB"
    )
    axes.set_xlabel("ranks")
    axes.set_ylabel("GiB a rank, fullest phase of training")
    axes.set_title(arch.name)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
