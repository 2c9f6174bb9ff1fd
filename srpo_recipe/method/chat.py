"""Chats and templates: the system turn before a chat, and fields filled into a text."""

import re
from collections.abc import Sequence


def with_system_prompt(messages: Sequence[dict], system_prompt: str | None) -> list[dict]:
    """A chat that begins with a system turn: its own, or else one of `system_prompt`; None leaves every chat as it is."""
    if system_prompt is None or messages[0].get("role") == "system":
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def fill(template: str, /, **fields: str) -> str:
    """`template` with each {name} of `fields` replaced, in one pass: braces within a value stay, and so do all other braces."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)
