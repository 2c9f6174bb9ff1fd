"""The rows of a run under its model's own chat template and in its positions, for a model that is a folder here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.data.lengths import Sampled, check_positions, check_prompts, check_teacher
from srpo_recipe.data.template import check_template
from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.settings.read import read


def check_rendered(
    sampled: Mapping[str, Sampled], examples: Sequence[list[dict[str, str]]], config: DictConfig
) -> None:
    """sampled: chats by "train_files" and "val_files"; examples: a chat of each data_source. Raises ValueError for a
    template that does not render the chats, and for prompts that have no room.
    """
    model = config.actor_rollout_ref.model
    tokenizer, positions = _tokenizer(model), _positions(model)
    if model.custom_chat_template is not None:
        tokenizer.chat_template = model.custom_chat_template
    given, system = options(config.data), config.srpo.system_prompt
    check_template(tokenizer, [with_system_prompt(chat, system) for chat in examples], given)
    check_positions(positions, config)
    check_prompts(sampled, tokenizer, given, config)
    if "train_files" in sampled and read(config).needs_teacher:
        check_teacher(sampled["train_files"], tokenizer, given, positions, config)


def options(data: DictConfig) -> dict[str, Any]:
    """What the chat template is given besides."""
    given = data.get("apply_chat_template_kwargs")
    plain = OmegaConf.to_container(given, resolve=True) if given else {}
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _positions(model: DictConfig) -> int | None:
    """How many tokens the model has positions for; None where its config does not say, or is not one that transformers reads."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(Path(model.path).expanduser(), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError):  # the doctor says which file of the model is broken
        return None
    return getattr(found.get_text_config(), "max_position_embeddings", None)


def _tokenizer(model: DictConfig) -> Any:
    from transformers import AutoTokenizer

    path = model.tokenizer_path or Path(model.path).expanduser()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # of transformers, tokenizers, and of code that a model brings
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the tokenizer of {path} cannot be loaded: {reason}") from error
