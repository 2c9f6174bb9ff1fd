"""The self-teacher's prompt: the student's own prompt, enriched with what the student does not see (paper, section 3.2).

The teacher is the student's EMA. It generates nothing: it re-scores the student's response under this prompt. A demonstration
is text that the model wrote, so nothing in it is trusted: control tokens in it are encoded as plain text, braces and template
marks are left alone, and it can be shortened but never pushes out the closing instruction or the assistant header.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from srpo_recipe.method.chat import fill

THINK_SPAN = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
THINK_HEAD = re.compile(r"^.*?</think>\s*", re.DOTALL)  # the chat template may have opened the span in the prompt
_MARK = "SRPOUSERTURN{}MARK"


def strip_thinking(text: str) -> str:
    """The text of a response without its `<think>...</think>` parts, also one that the prompt had opened."""
    text = THINK_SPAN.sub("", text)
    return THINK_HEAD.sub("", text) if "</think>" in text else text


@dataclass(frozen=True)
class StudentChat:
    """What a student's prompt was rendered from, as its agent loop rendered it: chat messages, and the tools offered to it."""

    messages: Sequence[dict]
    tools: Sequence[dict] | None = None


@dataclass(frozen=True)
class TeacherPrompt:
    """Token ids of one teacher prompt; shortened: whether the demonstration had to be cut to fit."""

    ids: list[int]
    shortened: bool


class TeacherPromptBuilder:
    """Builds teacher prompts with a model's own tokenizer and chat template.

    tokenizer: a fast Hugging Face tokenizer with a chat template. template, feedback_template: user turns with the fields
    `{prompt}`, `{demonstration}` and `{feedback}`. max_tokens: budget of the whole prompt, assistant header included.
    chat_options: the keyword arguments that the student's prompt is rendered with (thinking switched off, for instance).
    """

    def __init__(
        self, tokenizer: Any, template: str, feedback_template: str, max_tokens: int, chat_options: dict | None = None
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.feedback_template = feedback_template
        self.max_tokens = max_tokens
        self.chat_options = dict(chat_options or {})
        self._special_ids = set(tokenizer.all_special_ids)
        self._frames: dict[str, tuple[list[int], list[int]]] = {}

    def demonstration(self, response_ids: Sequence[int] | Tensor) -> str:
        """Text of a sibling's response, given as token ids (response_ids): without the end-of-turn tokens that closed it,
        without its thinking part.
        """
        ids = response_ids.tolist() if isinstance(response_ids, Tensor) else list(response_ids)
        while ids and ids[-1] in self._special_ids:
            ids.pop()
        return strip_thinking(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def build(
        self,
        chat: StudentChat,
        demonstration: str | None,
        feedback: str | None = None,
        max_tokens: int | None = None,
    ) -> TeacherPrompt | None:
        """Teacher prompt for one rollout, or None when not even an empty demonstration fits into the budget.

        chat: what the student's prompt was rendered from; earlier turns (a system prompt) and tools are kept, the last turn,
        which must be the user's, is rewritten. demonstration: from `demonstration`, None when only feedback is shown.
        feedback: the verifier's text. max_tokens: this prompt's own budget, where it is below the builder's. A
        demonstration that does not fit loses its beginning: the answer stands at its end. Raises ValueError for a chat whose
        last turn is not a text turn of the user.
        """
        turn = dict(chat.messages[-1])
        if turn.get("role") != "user" or not isinstance(turn.get("content"), str):
            raise ValueError(f"the last message must be a text turn of the user, got {turn!r}")
        head, tail = self._frame(chat)
        budget = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        room = budget - len(head) - len(tail)

        def user_turn(shown: str) -> list[int]:
            return self._plain(self._user_text(turn["content"], shown if demonstration is not None else None, feedback))

        content = user_turn(demonstration or "")
        if len(content) <= room:
            return TeacherPrompt([*head, *content, *tail], shortened=False)
        if demonstration is None or len(user_turn("")) > room:
            return None
        kept = self._longest_suffix(demonstration, lambda text: len(user_turn(text)) <= room)
        return TeacherPrompt([*head, *user_turn(kept), *tail], shortened=True)

    def _user_text(self, prompt: str, demonstration: str | None, feedback: str | None) -> str:
        if demonstration is None:
            return fill(self.feedback_template, prompt=prompt, feedback=feedback or "", demonstration="")
        text = demonstration if not feedback else f"{demonstration}\n\n{feedback}"
        return fill(self.template, prompt=prompt, demonstration=text, feedback=feedback or "")

    def _plain(self, text: str) -> list[int]:
        """Encode text so that no part of it becomes a control token."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _frame(self, chat: StudentChat) -> tuple[list[int], list[int]]:
        """Token ids before and after the last user turn, as the chat template writes them for the student."""
        earlier = list(chat.messages[:-1])
        key = repr((earlier, chat.tools))
        if key not in self._frames:
            mark = _MARK.format(len(key))
            rendered = self.tokenizer.apply_chat_template(
                [*earlier, {"role": "user", "content": mark}],
                tools=chat.tools,
                add_generation_prompt=True,
                tokenize=False,
                **self.chat_options,
            )
            if rendered.count(mark) != 1:
                raise ValueError("the chat template must write the user's turn exactly once")
            head, tail = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in rendered.split(mark))
            self._frames[key] = (head, tail)
        return self._frames[key]

    @staticmethod
    def _longest_suffix(text: str, fits: Callable[[str], bool]) -> str:
        """Longest end of the text for which `fits` holds, by bisection over the characters."""
        low, high = 0, len(text)  # text[high:] fits, text[low:] may not
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(text[middle:]) else (middle + 1, high)
        return text[high:]
