"""Whether the prompts of a run fit: the student's into data.max_prompt_length, the teacher's into its budget, both with a
response into the model's positions. Asked before anything starts, of rows spread over the files.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.method.self_teacher import StudentChat, TeacherPromptBuilder


class Sampled(NamedTuple):
    """Chats of data.train_files or data.val_files: their places (file and row), and how many rows all the files have."""

    places: Sequence[str]
    chats: Sequence[list[dict[str, str]]]
    rows: int

    def about(self, fitting: int) -> int:
        """How many of all rows fit, from how many of these do."""
        return round(self.rows * fitting / max(1, len(self.chats)))


def check_positions(positions: int | None, config: DictConfig) -> None:
    """positions: of the model, None where its config does not say. Raises ValueError where a prompt and a response have no room
    in them, which vLLM would say minutes later.
    """
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    asked = max(prompt + response, config.actor_rollout_ref.rollout.max_model_len or 0)
    if positions is not None and asked > positions:
        raise ValueError(
            f"the model has {positions} positions, less than data.max_prompt_length={prompt} and "
            f"data.max_response_length={response} together (or rollout.max_model_len): lower one of them"
        )


def check_prompts(found: Mapping[str, Sampled], tokenizer: Any, options: dict[str, Any], config: DictConfig) -> None:
    """Raise ValueError where verl would drop so many rows as too long that no batch is left, or end at one of them.

    found: by "train_files" and "val_files"; options: data.apply_chat_template_kwargs.
    """
    data, system = config.data, config.srpo.system_prompt
    for key, sampled in found.items():
        fits = [prompt_length(chat, tokenizer, options) <= data.max_prompt_length for chat in sampled.chats]
        if system:
            _check_system_prompt(sampled, fits, tokenizer, options, config)
        if all(fits):
            continue
        first = sampled.places[fits.index(False)]
        if not data.filter_overlong_prompts:
            if data.truncation == "error":
                raise ValueError(
                    f"{first}: the prompt is longer than data.max_prompt_length={data.max_prompt_length}, at which the run "
                    "ends: raise it, or data.filter_overlong_prompts=true leaves such rows out"
                )
            continue
        left = sampled.about(sum(fits))
        if left < (data.train_batch_size if key == "train_files" else 1):
            raise ValueError(
                f"data.{key}: about {left} of {sampled.rows} rows have prompts of data.max_prompt_length="
                f"{data.max_prompt_length} or less, too few for a batch ({first} is the first longer one): raise it"
            )


def _check_system_prompt(
    sampled: Sampled, fits: Sequence[bool], tokenizer: Any, options: dict[str, Any], config: DictConfig
) -> None:
    """Raise ValueError where a row that verl keeps, by its own chat, is too long with srpo.system_prompt, and nobody chose where
    to cut it. fits: of each row, without it.
    """
    limit = config.data.max_prompt_length
    for place, chat, kept in zip(sampled.places, sampled.chats, fits, strict=True):
        length = prompt_length(with_system_prompt(chat, config.srpo.system_prompt), tokenizer, options)
        if kept and length > limit and config.data.truncation == "error":
            raise ValueError(
                f"{place}: with srpo.system_prompt the prompt has {length} tokens, more than data.max_prompt_length={limit}, "
                "by which verl keeps the row: raise it, or shorten srpo.system_prompt"
            )


def check_teacher(
    sampled: Sampled, tokenizer: Any, options: dict[str, Any], positions: int | None, config: DictConfig
) -> None:
    """Raise ValueError where the teacher's prompt has no room for any row, even with an empty demonstration: each failed rollout
    would go to GRPO, and no other line would say so.
    """
    teacher = config.srpo.teacher
    budget = teacher.max_prompt_tokens
    if positions is not None:
        budget = min(budget, positions - 1)
    builder = TeacherPromptBuilder(tokenizer, teacher.template, teacher.feedback_template, budget, options)
    if sampled.chats and not any(
        builder.build(StudentChat(with_system_prompt(chat, config.srpo.system_prompt)), "") for chat in sampled.chats
    ):
        raise ValueError(
            f"the teacher's prompt of {sampled.places[0]} needs more than {budget} tokens without any demonstration, and so do "
            "the others: raise srpo.teacher.max_prompt_tokens, or take a model with more positions"
        )


def prompt_length(chat: list[dict[str, str]], tokenizer: Any, options: dict[str, Any]) -> int:
    """Tokens of a prompt, as verl counts them. options: of the chat template."""
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
