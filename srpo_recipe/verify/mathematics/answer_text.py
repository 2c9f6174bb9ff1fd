r"""Which text of a response is its answer, and which of a ground truth: searches that are linear in the length of the text."""

import re

from srpo_recipe.verify.mathematics.published import _BOX as BOX
from srpo_recipe.verify.mathematics.published import _DELIMITERS, LONGEST_ANSWER, boxed
from srpo_recipe.verify.mathematics.words import UNITS
from srpo_recipe.verify.sections import final_part

_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+|/\d+)?"


def _delimited(text: str) -> tuple[int, str | None] | None:
    """(where it begins, what it holds) of an expression between delimiters that ends a text; None for a text that does not."""
    for closing, opening in _DELIMITERS.items():
        if text.endswith(closing):
            start = text.rfind(opening, 0, len(text) - len(closing))
            return (start, text[start + len(opening) : -len(closing)].strip()) if start >= 0 else (0, None)
    return None


def _of_a_length(answer: str | None) -> str | None:
    return answer if answer and len(answer) <= LONGEST_ANSWER else None


_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([-+]?\d[\d,./]*(?<=\d)|[A-Za-z])(?![\w/])|\\(?:boxed|fbox)(\d)(?!\w)")
_UNIT_WORDS = "|".join(sorted({re.escape(name) for name in UNITS if len(name) > 1}, key=len, reverse=True))
_STRICT_NUMBER = re.compile(
    rf"(?:^|[=:#]|\b(?:is|are|equals|so|costs|total|answer|got|gives|makes|earned|pays))[\s*]*(?P<number>\\?\$?{_NUMBER}(?:\s*\\?%|\s*°|\s+(?:{_UNIT_WORDS})s?|\s+percent)?)$",
    re.I,
)
# Words before the last expression of a sentence that make it less than an answer.
_HEDGE = re.compile(
    r"\b(?:not|cannot|never|either|or|neither|nor|except|unless|maybe|perhaps|possibly|probably|might|could|roughly|if|guess)\b"
    r"|n't\b|\\(?:ne|neq|not)\b|≠",
    re.I,
)
_SENTENCE = re.compile(r"[.!?]\s|\n")
_JOINED = re.compile(r"(?:\$|\\\)|\\\])\s*(?:,|and|&|;)\s*$", re.I)


def strict(response: str) -> str | None:
    r"""The text of a response's answer, None when it has none.

    As in the published mode (published.answer_text), and: `\boxed 5` is a box; a number may have a currency sign, a percent
    sign or a unit. Where no box is opened, a sentence that hedges ("not $4$", "either $3$ or $4$", "$3$ and $4$") has none.
    """
    text = final_part(response)
    if BOX.search(text):
        *_, last = BOX.finditer(text)
        if not any(found.start() > last.start() for found in _BARE_BOX.finditer(text)):
            return _of_a_length(boxed(text))
    if bare := list(_BARE_BOX.finditer(text)):
        return bare[-1][1] or bare[-1][2]
    text = text.rstrip(" \t\r\n.*")
    found = _delimited(text)
    if found is None or found[1] is None:
        line = text[text.rfind("\n") + 1 :]
        if len(line) > 2 * LONGEST_ANSWER:  # the search is quadratic in spaces
            line = "…" + line[-2 * LONGEST_ANSWER :]
        plain = _STRICT_NUMBER.search(line)
        if plain is None or _hedged(line[: plain.start("number")]):
            return None
        return _of_a_length(plain["number"].strip() if re.search(r"\d", plain["number"]) else None)
    before = text[max(0, found[0] - 2 * LONGEST_ANSWER) : found[0]]
    return None if _hedged(before) or _JOINED.search(before) else _of_a_length(found[1])


def _hedged(before: str) -> bool:
    """Whether the sentence that leads to an expression takes it back. before: the text up to the expression."""
    *_, sentence = _SENTENCE.split(before.rstrip(" \t"))
    return _HEDGE.search(sentence) is not None


_SAID = re.compile(r"(?:so |therefore,? |thus,? )?(?:the )?(?:final )?answer(?: is|:)\s*(.+)", re.I | re.S)


def of_truth(ground_truth: str) -> str:
    """The answer inside of a ground truth: the last box, what follows the last `####` or "the answer is", or all of it."""
    text = ground_truth.strip()
    if BOX.search(text):
        return boxed(text) or ""
    if "####" in text:
        return text[text.rfind("####") + 4 :].strip()
    said = _SAID.fullmatch(text)
    return said[1].strip() if said else text
