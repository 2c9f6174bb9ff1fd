"""Tokens as text, one by one: what a reader sees of a response token, or of a word that a model likes."""

from collections.abc import Sequence
from typing import Any

_PART = "\ufffd"  # what a tokenizer decodes a part of a character to
_MOST_PARTS = 8  # tokens that can make one character together
_BEFORE = "a"


class TokenTexts:
    """Texts of single tokens of one tokenizer, each decoded once.

    A token is decoded behind another one, since some tokenizers leave the space out that begins a text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.before = tokenizer(_BEFORE, add_special_tokens=False)["input_ids"]
        self.known: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens together, control tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def word(self, token: int) -> str:
        """The text of a token alone; U+FFFD stands for a part of a character."""
        if token not in self.known:
            text = self.text([*self.before, token])
            alone = self.text(self.before)
            self.known[token] = text[len(alone) :] if text.startswith(alone) else self.text([token])
        return self.known[token]

    def words(self, liked: Sequence[Sequence[int]]) -> list[list[str]]:
        """`word` of each of some tokens [R, K]; a step shows millions of them, and most are known."""
        for token in {token for some in liked for token in some} - self.known.keys():
            self.word(token)
        return [[self.known[token] for token in some] for some in liked]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The texts of a response's tokens. A character that several tokens make stands at the last of them; the others are
        empty.
        """
        texts, first = [], 0
        for place, token in enumerate(ids):
            texts.append(self.word(token))
            first = max(first, place + 1 - _MOST_PARTS)
            if _PART not in texts[place]:
                first = place + 1
            elif _PART not in (whole := self.text(ids[first : place + 1])):
                texts[first : place + 1] = [""] * (place - first) + [whole]
                first = place + 1
        return texts
