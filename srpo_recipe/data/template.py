"""Whether a model's chat template renders the chats of a run: every turn once, and a place for the answer at the end."""

from collections.abc import Sequence
from typing import Any

MARK = "a-turn-that-stands-nowhere-else"


def check_template(tokenizer: Any, chats: Sequence[list[dict[str, str]]], options: dict[str, Any]) -> None:
    """Render chats with their last turn marked.

    tokenizer: transformers' own; options: data.apply_chat_template_kwargs. Raises ValueError, with what the template does, where
    it has none, refuses the chat, leaves the user's turn out or writes it twice, or does not begin the answer.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template: take an instruction-tuned model, or give custom_chat_template"
        )
    for chat in chats:
        _check(tokenizer, chat, options)


def _check(tokenizer: Any, chat: list[dict[str, str]], options: dict[str, Any]) -> None:
    marked = [*chat[:-1], {**chat[-1], "content": MARK}]
    roles = ", ".join(turn["role"] for turn in chat)

    def render(messages: list[dict[str, str]], begin: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin, **options)

    try:
        prompt, closed = render(marked, True), render(marked, False)
    except Exception as error:  # jinja's, and whatever a template raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the model's chat template refuses a chat of the turns {roles}: {reason}") from None
    if (times := prompt.count(MARK)) != 1:
        raise ValueError(f"the model's chat template writes the last turn of a chat {times} times")
    if prompt != closed:
        return
    try:
        answered = render([*marked, {"role": "assistant", "content": f"{MARK}-answer"}], False)
    except Exception:  # a template that takes no answer says nothing about how one begins
        return
    before = answered.partition(f"{MARK}-answer")[0]
    if before.startswith(prompt) and before[len(prompt) :].strip():
        header = before[len(prompt) :].strip()
        raise ValueError(
            f"the model's chat template ignores add_generation_prompt: an answer would have to begin with {header!r}, which the "
            "prompt lacks; give another actor_rollout_ref.model.custom_chat_template"
        )
