"""A model's dimensions and exact parameter counts, without its weights.

The counts come from building the model on torch's meta device, which allocates nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_recipe.settings.kinds import is_count

# Published dimensions (the models' own config.json on the hub), for hub names whose config is not at hand.
_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "tie_word_embeddings")
PUBLISHED: dict[str, dict[str, Any]] = {
    name: {**_QWEN3, **dict(zip(_FIELDS, numbers, strict=True))}
    for name, numbers in {
        "Qwen/Qwen3-0.6B": (1024, 28, 16, 3072, True),
        "Qwen/Qwen3-1.7B": (2048, 28, 16, 6144, True),
        "Qwen/Qwen3-4B": (2560, 36, 32, 9728, True),
        "Qwen/Qwen3-8B": (4096, 36, 32, 12288, False),
        "Qwen/Qwen3-14B": (5120, 40, 40, 17408, False),
        "Qwen/Qwen3-32B": (5120, 64, 64, 25600, False),
    }.items()
}


@dataclass(frozen=True)
class Linear:
    """A linear layer, by its name in the model."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Architecture:
    """A dense decoder. Counts are of parameters; `layer` is one decoder layer, `head` the output layer's matrix."""

    name: str
    source: str  # where the dimensions come from
    parameters: int
    layer: int
    head: int
    tied: bool  # the output layer is the embedding
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    qk_norm: bool  # queries and keys have a norm of their own, as in Qwen3
    linears: tuple[tuple[Linear, ...], ...]  # of each decoder layer


def describe_model(path: str) -> Architecture:
    """The model of `actor_rollout_ref.model.path`: a folder, or a hub name.

    A hub name is looked up in the local cache first, then in the published table above, then on the hub. Raises
    ValueError, with the fix, for a model that cannot be read or is no dense decoder.
    """
    config, source = _config(path)
    return _measure(path, source, config)


def _config(path: str) -> tuple[Any, str]:
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    if folder.is_dir():
        try:
            return AutoConfig.from_pretrained(folder), f"{folder / 'config.json'}"
        except Exception as error:  # transformers says what is wrong in a file in many types
            raise ValueError(f"{folder} has no config.json that transformers can read: {error}") from None
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True), "the hub's local cache"
    except (OSError, ValueError):
        pass
    if path in PUBLISHED:
        return AutoConfig.for_model(**PUBLISHED[path]), "the published dimensions in srpo_recipe/plan/architecture.py"
    try:
        return AutoConfig.from_pretrained(path), "the hub"
    except (OSError, ValueError) as error:
        known = ", ".join(PUBLISHED)
        raise ValueError(
            f"actor_rollout_ref.model.path={path} is no folder, is not in the hub's cache and cannot be fetched "
            f"({str(error).splitlines()[0]}); give a folder with a config.json, or one of {known}"
        ) from None


def _measure(name: str, source: str, config: Any) -> Architecture:
    import torch
    from transformers import AutoModelForCausalLM

    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, key, 0)]
    if experts:
        raise ValueError(f"{name} is a mixture of experts ({experts[0]}); the planner knows dense decoders only")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # as many as there are kinds of models
        raise ValueError(f"{name}: transformers cannot build a language model from its config: {error}") from None
    sizes = ("hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers")
    if wrong := [size for size in sizes if not is_count(getattr(config, size, None))]:
        raise ValueError(
            f"{name}: its config has {wrong[0]}={getattr(config, wrong[0], None)}, which is no size of a model"
        )
    wrapped = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in wrapped]
    if not layers or not hasattr(config, "intermediate_size"):
        raise ValueError(
            f"{name} ({config.model_type}) is no decoder of equal layers; the planner knows dense decoders"
        )
    return Architecture(
        name=name,
        source=source,
        parameters=sum(p.numel() for p in model.parameters()),
        layer=sum(p.numel() for p in layers[0].parameters()),
        head=model.get_output_embeddings().weight.numel(),
        tied=bool(config.tie_word_embeddings),
        layers=len(layers),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        qk_norm=any("q_norm" in name for name, _ in layers[0].named_parameters()),
        linears=tuple(_linears(prefix, layer) for prefix, layer in model.named_modules() if layer in layers),
    )


def _linears(prefix: str, layer: Any) -> tuple[Linear, ...]:
    """The linear layers of a decoder layer, whose name is `prefix`."""
    import torch

    return tuple(
        Linear(f"{prefix}.{name}", module.in_features, module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
