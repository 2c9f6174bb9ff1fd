"""What a run asks of its model's config.json, where that is on this machine: heads that can be split, and layers for the
adapters.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.settings import lora_modules, parallel


def local_folder(path: str) -> Path | None:
    """The folder of a model that is on this machine: as given, or the hub's cached snapshot; None when it is not here."""
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def check(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for ranks that the heads cannot be split over, and for modules that the model lacks."""
    size = config.actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size
    modules = lora_modules.named(config)
    if size == 1 and not any(modules.values()):
        return
    model = config.actor_rollout_ref.model
    found = _config(model)
    if found is None:
        return
    if size > 1 and (heads := _heads(found)) and (fault := parallel.unfit(*heads, size)):
        raise ValueError(f"{fault} ({model.path})")
    if any(modules.values()) and (layers := _linear_layers(found, model.trust_remote_code)):
        lora_modules.check_against(modules, layers, model.path)


def _config(model: DictConfig) -> Any:
    """The config of a model that is here; None where it is not, or cannot be read, which the doctor says."""
    from transformers import AutoConfig

    folder = local_folder(model.hf_config_path or model.path)
    try:
        return folder and AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception:  # transformers says what is wrong in a file in many types
        return None


def _heads(found: Any) -> tuple[int, int] | None:
    """Heads, and heads of keys and values, as verl reads them."""
    text = found if hasattr(found, "num_attention_heads") else found.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return (heads, kv_heads) if isinstance(heads, int) and isinstance(kv_heads, int) else None


def _linear_layers(found: Any, trusted: bool) -> lora_modules.Layers | None:
    """Names of the model's linear layers, from building it without memory; None for a model that cannot be built so."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(found, trust_remote_code=trusted)
    except Exception:  # as many as there are kinds of models
        return None
    head = built.get_output_embeddings()
    linear = {name: module for name, module in built.named_modules() if isinstance(module, torch.nn.Linear)}
    return lora_modules.Layers(
        [name for name, module in linear.items() if module is not head],
        [name for name, module in linear.items() if module is head],
    )
