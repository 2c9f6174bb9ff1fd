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
from typing import Any

import torch
from omegaconf import OmegaConf

from srpo_recipe.records import adapters, checkpoint
from srpo_recipe.records.files import whole_folder
from srpo_recipe.records.shards import merge

WEIGHTS = ("student", "teacher")
DTYPES = ("stored", "float32", "bfloat16", "float16")


def latest_step(path: Path) -> Path | None:
    """The folder global_step_N that `path` is or holds, or None where there is none.

    path: the step's folder, a `checkpoints` folder, or the folder of a run. Of several steps it is the one that
    verl's latest_checkpointed_iteration.txt names, since a later one may be half-written. Raises ValueError where that file
    names no step.
    """
    if re.fullmatch(r"global_step_\d+", path.name):
        return path if path.is_dir() else None
    for folder in (path, path / "checkpoints"):
        if (step := checkpoint.pointer(folder)) is not None:
            return checkpoint.step_folder(folder, step)
    return None


def find_weights(path: Path, weights: str) -> Path:
    """The folder with the shards of the student or of the teacher.

    path: as for `latest_step`. Raises FileNotFoundError with the fix where they are not, ValueError for a damaged checkpoint.
    """
    try:
        step = latest_step(path)
    except ValueError as error:
        raise ValueError(f"{error}: name the global_step_N folder that is meant") from error
    if step is None:
        raise FileNotFoundError(
            f"{path} is no checkpoint: name a global_step_N folder, or a run's folder with checkpoints in it"
        )
    if not step.is_dir():
        others = checkpoint.steps(step.parent)
        raise FileNotFoundError(
            f"{step} is not there"
            + (
                f", and {checkpoint.TRACKER} names it: name one of the steps {others}"
                if others
                else ": its run has no other step"
            )
        )
    folder = Path(checkpoint.teacher_path(str(step / "actor"))) if weights == "teacher" else step / "actor"
    if not (folder / "fsdp_config.json").is_file():
        kept = sorted(file.parent.name for file in step.glob("*/fsdp_config.json"))
        raise FileNotFoundError(
            f"{step} holds no {weights}"
            + (f", only: {', '.join(kept)}" if kept else "; a later step may have replaced it")
        )
    return folder


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
    try:
        scale = json.loads(meta.read_text(encoding="utf-8"))
        known = {key: scale[key] for key in ("r", "lora_alpha")}
        known["lora_alpha"] / known["r"]
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{meta} does not say the adapter's rank and scale (r, lora_alpha): it is damaged") from error
    return adapters.pairs(state, name), known


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


def export_adapter(folder: Path, out: Path, dtype: str = "stored") -> Path:
    """Write the adapter in `folder` as peft saves it.

    dtype: one of DTYPES. Raises FileExistsError when `out` holds anything, ValueError as `adapter_of` and for damaged files.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapters.refuse_damaged(folder)
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
        state = _as_type(adapters.as_peft_saves(adapter), dtype)
        state = {name: value.contiguous() for name, value in state.items()}
        save_file(state, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        _copy_beside(_source(folder), partial, ("config.json", "generation_config.json"))
    return out


def _base(step: Path) -> str | None:
    """The base model that the run names, None where its config is not there."""
    config = step.parent.parent / "config.yaml"
    if not config.is_file():
        return None
    return OmegaConf.select(OmegaConf.load(config), "actor_rollout_ref.model.path")


def export(folder: Path, out: Path, dtype: str = "stored") -> Path:
    """Write the sharded model in `folder` as a Hugging Face folder `out`, which appears whole or not at all.

    dtype: one of DTYPES. Raises FileExistsError when `out` holds anything, FileNotFoundError where the checkpoint has no
    config, and ValueError as `merge` does, for damaged files and when the weights are not those of that config.
    """
    with whole_folder(out, frozenset()) as partial:
        adapters.refuse_damaged(folder)
        state = whole_model(folder)
        source = _source(folder)
        config, known = _architecture(source / "config.json")
        state = _as_type(state, dtype)
        stored = next(value.dtype for value in state.values() if value.is_floating_point())
        with torch.device("meta"):
            model = known._from_config(config, dtype=stored)
        _fits(folder, model, state)
        _drop_tied(state, model)
        model.save_pretrained(partial, state_dict=state)
        _copy_beside(source, partial, ("config.json",))
    return out


def _copy_beside(source: Path, target: Path, but: tuple[str, ...]) -> None:
    """Tokenizer, chat template and generation config as they are. Not the weights that a run saved there (hf_model)."""
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
        if file.is_file() and file.name not in but and not weights:
            shutil.copy(file, target / file.name)


def _as_type(state: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    return state if dtype == "stored" else {name: value.to(getattr(torch, dtype)) for name, value in state.items()}


def _source(folder: Path) -> Path:
    """The folder with the model's config and tokenizer."""
    places = (folder / "huggingface", folder.parent / "actor" / "huggingface")
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"{places[0] / 'config.json'} is not there, which says what the weights are: copy the folder huggingface there, from "
        "another checkpoint of the run or from the model that it began with"
    )


def _architecture(file: Path) -> tuple[Any, Any]:
    """(a model's config, its class in transformers)."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(file.parent)
        return config, getattr(transformers, config.architectures[0])
    except Exception as error:  # transformers says what is wrong in a file in many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} names no model that transformers {transformers.__version__} has: {reason}") from error


def _fits(folder: Path, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if wrong := sorted(set(shapes) ^ set(state)):
        raise ValueError(f"the weights in {folder} are not those of a {type(model).__name__}: {wrong[:5]}")
    for name, shape in shapes.items():
        if shape != tuple(state[name].shape):
            raise ValueError(
                f"the weights in {folder} do not fit their config.json: {name} is {tuple(state[name].shape)}, and {shape} there"
            )


def _drop_tied(state: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Leave one name for each tensor: transformers does not tie again what a file holds twice."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names.setdefault(id(parameter), name) != name:
            del state[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        written = (export_adapter if args.adapter else export)(folder, args.out, args.dtype)
        print(f"{args.weights} of {folder.parent} -> {written}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
