"""A trained checkpoint as a Hugging Face folder that transformers and vLLM load, bit for bit.

    python -m srpo_recipe.export CHECKPOINT --weights student|teacher [--adapter] --out DIR

CHECKPOINT is a run's folder, its `checkpoints` folder (both mean the latest step) or one `global_step_N`. verl's own merger
(verl.model_merger) rounds every tensor to bfloat16 and looks for one model a step; here the weights keep the type in which
they were trained, and the EMA teacher beside the student can be had as well. Of a run with LoRA it is the base with the adapter
multiplied out, or with --adapter the adapter alone, which peft and vLLM load beside its base.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from srpo_recipe.records import adapters
from srpo_recipe.records.checkpoint import teacher_path
from srpo_recipe.records.files import whole_folder

WEIGHTS = ("student", "teacher")
DTYPES = ("stored", "float32", "bfloat16", "float16")


def latest_step(path: Path) -> Path | None:
    """The folder global_step_N that `path` is or holds, or None where there is none.

    path: the step's folder, a `checkpoints` folder, or the folder of a run. Of several steps it is the one that
    verl's latest_checkpointed_iteration.txt names, since a later one may be half-written.
    """
    if re.fullmatch(r"global_step_\d+", path.name):
        return path if path.is_dir() else None
    for folder in (path, path / "checkpoints"):
        tracker = folder / "latest_checkpointed_iteration.txt"
        if tracker.is_file():
            return folder / f"global_step_{int(tracker.read_text())}"
    return None


def find_weights(path: Path, weights: str) -> Path:
    """The folder with the shards of the student or of the teacher.

    path: as for `latest_step`. Raises FileNotFoundError with the fix where they are not.
    """
    step = latest_step(path)
    if step is None:
        raise FileNotFoundError(
            f"{path} is no checkpoint: name a global_step_N folder, or a run's folder with checkpoints in it"
        )
    folder = Path(teacher_path(str(step / "actor"))) if weights == "teacher" else step / "actor"
    if not (folder / "fsdp_config.json").is_file():
        kept = sorted(file.parent.name for file in step.glob("*/fsdp_config.json"))
        raise FileNotFoundError(
            f"{step} holds no {weights}"
            + (f", only: {', '.join(kept)}" if kept else "; a later step may have replaced it")
        )
    return folder


def shard_files(folder: Path) -> list[Path]:
    """The shards of a model in the order of the ranks. Raises FileNotFoundError when one is missing."""
    ranks = json.loads((folder / "fsdp_config.json").read_text())["world_size"]
    files = [folder / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: copy the shards of all {ranks} ranks there")
    return files


def merge(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded FSDP model, by name, in the type in which they were saved.

    Raises ValueError when the shards do not make up the tensors, and for layouts other than FSDP's, plain or replicated over
    groups of ranks.
    """
    import torch.distributed.tensor  # noqa: F401  (lets torch.load read sharded tensors without running pickled code)

    parts = [torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in shard_files(folder)]
    return {name: _join(name, [part[name] for part in parts]) for name in parts[0]}


def _join(name: str, pieces: list) -> torch.Tensor:
    """One tensor from its pieces on all ranks."""
    first = pieces[0]
    if not hasattr(first, "placements"):  # replicated: FSDP keeps buffers and what it does not wrap as they are
        if not all(torch.equal(first, piece) for piece in pieces):
            raise ValueError(f"{name} is not sharded, but differs between the ranks: the checkpoint is damaged")
        return first
    *outer, inner = first.placements
    if not inner.is_shard() or not all(placement.is_replicate() for placement in outer):
        raise ValueError(f"{name} is laid out as {first.placements}; only FSDP's sharding of one dimension is known")
    # With several groups of replicas the ranks of a group follow one another, so the first group is enough.
    group = pieces[: first.device_mesh.size(first.device_mesh.ndim - 1)]
    whole = torch.cat([piece.to_local() for piece in group], dim=inner.dim)
    if whole.shape != first.shape:
        raise ValueError(f"the shards of {name} make up {tuple(whole.shape)}, not {tuple(first.shape)}")
    return whole


def adapter_of(folder: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, int]]:
    """The adapter of the student's or the teacher's folder, by layer, and its r and lora_alpha.

    Raises ValueError for a checkpoint of full weights, and one that lacks the file with r and lora_alpha.
    """
    state = merge(folder)
    if not adapters.is_adapted(state):
        raise ValueError(f"{folder} holds full weights and no adapter: leave --adapter out")
    meta = folder.parent / "actor" / adapters.META
    if not meta.is_file():
        raise ValueError(f"{meta} is missing, which has the adapter's rank and scale")
    name = adapters.TEACHER if folder.name == "teacher" else adapters.STUDENT
    return adapters.pairs(state, name), json.loads(meta.read_text())


def whole_model(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model without adapters: those in `folder`, or base and adapter together.

    Raises ValueError as `merge` and `adapter_of` do, and where only adapters were saved.
    """
    state = merge(folder)
    if not adapters.is_adapted(state):
        return state
    adapter, meta = adapter_of(folder)
    base = state if folder.name == "actor" else merge(folder.parent / "actor")
    if not any(".lora_" not in name for name in base):
        raise ValueError(f"{folder} holds adapters alone (save_lora_only): export it with --adapter")
    return adapters.multiplied_out(base, adapter, meta["lora_alpha"] / meta["r"])


def export_adapter(folder: Path, out: Path) -> Path:
    """Write the adapter in `folder` as peft saves it.

    Raises FileExistsError when `out` holds anything, ValueError as `adapter_of`.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapter, meta = adapter_of(folder)
    actor = folder.parent / "actor"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=meta["r"],
        lora_alpha=meta["lora_alpha"],
        target_modules=adapters.target_modules(adapter, merge(actor)),
        base_model_name_or_path=_base(folder.parent),
        inference_mode=True,
    )
    with whole_folder(out, frozenset()) as partial:
        config.save_pretrained(str(partial))
        state = {name: value.contiguous() for name, value in adapters.as_peft_saves(adapter).items()}
        save_file(state, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        for file in (actor / "huggingface").iterdir():
            if file.is_file() and file.name not in ("config.json", "generation_config.json"):
                shutil.copy(file, partial / file.name)
    return out


def _base(step: Path) -> str | None:
    """The base model that the run names, None where its config is not there."""
    config = step.parent.parent / "config.yaml"
    if not config.is_file():
        return None
    return OmegaConf.select(OmegaConf.load(config), "actor_rollout_ref.model.path")


def export(folder: Path, out: Path, dtype: str = "stored") -> Path:
    """Write the sharded model in `folder` as a Hugging Face folder `out`, which appears whole or not at all.

    dtype: one of DTYPES. Raises FileExistsError when `out` holds anything, ValueError as `merge` does and when the
    weights are not those of the architecture that the checkpoint's config names.
    """
    import transformers

    source = folder / "huggingface"
    if not (source / "config.json").is_file():
        source = folder.parent / "actor" / "huggingface"
    with whole_folder(out, frozenset()) as partial:
        config = transformers.AutoConfig.from_pretrained(source)
        state = whole_model(folder)
        if dtype != "stored":
            state = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
        stored = next(value.dtype for value in state.values() if value.is_floating_point())
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])._from_config(config, dtype=stored)
        wrong = sorted(set(model.state_dict()) ^ set(state))
        if wrong:
            raise ValueError(f"the weights in {folder} are not those of a {config.architectures[0]}: {wrong[:5]}")
        _drop_tied(state, model)
        model.save_pretrained(partial, state_dict=state)
        for file in source.iterdir():  # tokenizer, chat template, generation config: as they are
            if file.is_file() and file.name != "config.json":
                shutil.copy(file, partial / file.name)
    return out


def _drop_tied(state: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Leave one name for each tensor: transformers does not tie again what a file holds twice."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names.setdefault(id(parameter), name) != name:
            del state[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, help="a run's folder, its checkpoints folder, or a global_step_N in it"
    )
    parser.add_argument("--weights", choices=WEIGHTS, default="student", help="default: student")
    parser.add_argument(
        "--adapter", action="store_true", help="of a run with LoRA: the adapter alone, for peft and vLLM"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="stored", help="default: as trained, float32 master weights")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    try:
        folder = find_weights(args.checkpoint, args.weights)
        written = export_adapter(folder, args.out) if args.adapter else export(folder, args.out, args.dtype)
        print(f"{args.weights} of {folder.parent} -> {written}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
