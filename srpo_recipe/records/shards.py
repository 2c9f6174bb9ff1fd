"""The shards of a model in a checkpoint: model_world_size_N_rank_R.pt beside fsdp_config.json, read without running code."""

import json
from pathlib import Path

import torch


def shard_files(folder: Path) -> list[Path]:
    """The shards of a model in the order of the ranks. Raises FileNotFoundError when one is missing, ValueError where the number
    of ranks cannot be read.
    """
    config = folder / "fsdp_config.json"
    try:
        ranks = json.loads(config.read_text(encoding="utf-8"))["world_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not say how many ranks wrote the model (world_size): it is damaged") from error
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ValueError(f"{config} says that {ranks!r} ranks wrote the model (world_size): it is damaged")
    files = [folder / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FileNotFoundError(f"{folder} lacks {shown}: copy the shards of all {ranks} ranks there")
    return files


def load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a shard by name, mapped into memory. Raises ValueError for a file that is none."""
    import torch.distributed.tensor  # noqa: F401  (lets torch.load read sharded tensors)

    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (
        Exception
    ) as error:  # torch says damage in many types: RuntimeError, EOFError, UnpicklingError, KeyError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file} is damaged, or no shard of a model ({reason[:200]}): take another checkpoint"
        ) from error
    tensors = isinstance(state, dict) and state and all(isinstance(value, torch.Tensor) for value in state.values())
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name: it is no shard of a model")
    return state


def merge(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded FSDP model, by name, in the type in which they were saved.

    Raises ValueError when a shard is damaged or the shards do not make up the tensors, and for layouts other than FSDP's, plain
    or replicated over groups of ranks.
    """
    files = shard_files(folder)
    parts = [load(file) for file in files]
    for part, file in zip(parts, files, strict=True):
        if wrong := sorted(parts[0].keys() ^ part.keys()):
            raise ValueError(f"{file} has other tensors than the first rank's shard ({wrong[0]}, ...): it is damaged")
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
