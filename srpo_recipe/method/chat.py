"""Chats and templates: what a chat is, the system turn before one, and fields filled into a text."""

import re
from collections.abc import Sequence
from typing import Any

CHAT = "a list of chat messages with the texts role and content"


def is_chat(value: Any) -> bool:
    """Whether a value is CHAT, with a message at least."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in _TURN) for turn in value)
    )


_TURN = ("role", "content")


def with_system_prompt(messages: Sequence[dict], system_prompt: str | None) -> list[dict]:
    """A chat that begins with a system turn: the one of `messages`, or else one of `system_prompt`; None leaves every chat
    as it is.
    """
    if system_prompt is None or messages[0].get("role") == "system":
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def fill(template: str, /, **fields: str) -> str:
    """`template` with each {name} of `fields` replaced, in one pass: braces within a value stay, and so do all other braces."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)
