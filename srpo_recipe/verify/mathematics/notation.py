r"""Strict mathematics, first part: how an answer is written. From the text of an answer to LaTeX whose meaning is certain.

docs/verifiers.md has the rules as a table. What could mean two things (`1 2`, `2\frac{5}{3}`, `12 apples`) is not read: `Unread`.
Everything here is text; structure.py and arithmetic.py read it.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from srpo_recipe.verify.mathematics.words import FUNCTIONS, MULTIPLIERS, SHORT_WORDS, SIGNS, SUPERSCRIPTS, UNITS, VULGAR


class Unread(ValueError):
    """Why a text is not read as an answer, in words."""


@dataclass(frozen=True)
class Written:
    """An answer as it is written.

    latex: what is left to be read; None where the answer is text or a numeral of another base. text: a word, lower case, single
    spaces. base, digits: of a numeral such as 101_2. unit: in one spelling, "" for none. percent: whether a percent sign stood
    behind it. decimal: (digits behind the point, significant digits) where the whole answer is one decimal number, else None.
    """

    latex: str | None = None
    text: str | None = None
    base: int | None = None
    digits: str = ""
    unit: str = ""
    percent: bool = False
    decimal: tuple[int, int] | None = None


# ---- characters and commands that mean the same ----

_SPACES = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad\b|\\hspace\{[^{}]*\}|\s+")
_PLAIN = [
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|!)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:mathrm|operatorname|rm)\s*\{\s*([eid])\s*\}"), r" \1 "),
    (re.compile(r"\\(?:mathrm|textbf|textit|textrm|mathbf|mbox|operatorname|textsf|mathsf|text)\s*\{"), r"\\text{"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:neq|not\s*=)(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"_\s*(\d+)"), r"_{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<!\\)\*"), r"\\cdot "),
]
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_RAISED = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_VULGAR = re.compile(f"(\\d?)\\s*([{''.join(VULGAR)}])")


def _unified(text: str) -> str:
    """One spelling for characters and commands that mean the same."""
    text = text.replace(r"\$", " ").replace("$", " ")
    text = _VULGAR.sub(lambda m: f"{m[1]} \\frac{{{VULGAR[m[2]][0]}}}{{{VULGAR[m[2]][1]}}}", text)
    text = _RAISED.sub(lambda m: "^{" + "".join(SUPERSCRIPTS[one] for one in m[0]) + "}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    for pattern, instead in _PLAIN:
        text = pattern.sub(instead, text)
    text = _SPACES.sub(" ", text).strip()
    while text[-1:] in (".", ",", ";") and not text.endswith((r"\,", r"\;")):
        text = text[:-1].rstrip()
    return text.removeprefix("+").strip()


# ---- words, units, percent ----

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_UNIT = re.compile(
    r"(?:(?<=[\dA-Za-z})!.°])\s*\\text\{\s*([^{}\d]*?)\s*\}|(?<=[\d})!.°])\s*([A-Za-z]{2}[A-Za-z ]*?))\s*(?:\^\s*\{?([23])\}?)?$"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\}")
_HEDGE = re.compile(
    r"\b(?:not|no|neither|nor|either|except|maybe|perhaps|possibly|about|approximately|around|unless)\b", re.I
)


def _as_text(text: str) -> str | None:
    r"""A word that is the whole answer: in \text{...}, or a bare run of letters that is no product. None for mathematics."""
    inner = text
    while inner[:1] == "(" and inner[-1:] == ")":
        inner = inner[1:-1].strip()
    marked = _TEXT.fullmatch(inner)
    word = " ".join((marked[1] if marked else inner).strip(" ().").split())
    if not word or not re.fullmatch(r"[^\W_][\w' ,.:-]*", word) or (marked and re.fullmatch(r"[-+\d.,:/ ]*", word)):
        return None
    if len(word) == 1:
        return word if marked and word.isalpha() else None
    if marked:
        return word.casefold()
    if not re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", word) or word in FUNCTIONS:
        return None
    if " " in word:
        raise Unread(f"{word!r} is a sentence; what is one answer stands in \\text{{...}}")
    return word.casefold() if len(word) > 3 or word.casefold() in SHORT_WORDS else None


def _without_unit(text: str) -> tuple[str, str, bool]:
    """(text, unit, percent) of an answer that may end in a unit or a percent sign. Raises Unread for a word that is none."""
    percent = re.search(r"\s*(?:\\?%|\b(?:percent|per cent)|\\text\{\s*(?:percent|\\?%)\s*\})$", text)
    if percent:
        return text[: percent.start()].rstrip("\\ "), "", True
    found = _UNIT.search(text)
    if not found:
        return text, "", False
    number = text[: found.start()].rstrip()
    name = " ".join((found[1] if found[1] is not None else found[2]).strip(" .()").split())
    multiplier, _, rest = name.casefold().partition(" ")
    if multiplier in MULTIPLIERS:
        number, name = rf"{number} \times {MULTIPLIERS[multiplier]}", rest
        if not name:
            return number, "", False
    unit = _unit(name)
    if unit is None and found[1] is not None and name and not _HEDGE.search(name) and not number[-1:].isalpha():
        unit = name if len(name) < 4 else name.casefold()  # marked as text: something that is counted
    if unit is None:
        return text, "", False
    return number, unit + (found[3] or ""), False


def _unit(name: str) -> str | None:
    """The one name of a unit. A single letter has no plural: `ms` is not m."""
    name = name.casefold()
    return UNITS.get(name, UNITS.get(name[:-1]) if len(name) > 2 and name.endswith("s") else None)


# ---- numbers ----

_BASED = re.compile(r"([-+]?)\(?([0-9A-Za-z]+)\)?_\s*(?:\{\s*)?(?:\\text\{\s*)?(\d+|[a-z]+)(?:\s*\})*")
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}
_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d.,]| ?\d)")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(
    r"(?<![\w.^_}/])(\d+) ?(?: (\d+) ?/ ?(\d+)|\\frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d)))(?![\d.!^])"
)
_REPEATING = re.compile(r"(?<![\w.])(\d*)\.(\d*)\\(?:overline|bar) ?\{(\d+)\}")
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.])|(?<![\w.])(\d*)\.(\d+)(?=[A-Za-z](?![A-Za-z]))")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])")
_ALONE = re.compile(r"[-+]?(\d*)\.(\d+)")
_SIDE_BY_SIDE = re.compile(r"\d \d|\d ?\. \d|\.\d+\.|\d_|\d/\d+/\d")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\}) ?°")


def _based(text: str) -> Written | None:
    """A numeral of a named base. Raises Unread for digits that the base has not."""
    found = _BASED.fullmatch(text)
    if not found or not found[2][0].isdigit():
        return None
    base = int(found[3]) if found[3].isdigit() else _BASES.get(found[3], 0)
    try:
        int(found[2], base if 2 <= base <= 36 else 37)
    except ValueError:
        raise Unread(f"{text} is no numeral of base {found[3]}") from None
    return Written(base=base, digits=found[1].strip("+") + found[2].lstrip("0").lower())


def _mixed(found: re.Match) -> str:
    whole, top, bottom = int(found[1]), int(found[2] or found[4] or found[5]), int(found[3] or found[6] or found[7])
    rest = found.string[found.end() :].lstrip()
    if top >= bottom or rest[:1].isalpha() or rest.startswith(("(", r"\frac", r"\sqrt", r"\pi", "°")):
        raise Unread(f"{found[0]} may be a sum or a product")
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


def _fraction(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"{{\frac{{{value.numerator}}}{{{value.denominator}}}}}"


def _repeating(found: re.Match) -> str:
    head, once, again = found[1] or "0", found[2], found[3]
    digits = 10 ** len(once)
    return _fraction(Fraction(int(head + once), digits) + Fraction(int(again), digits * (10 ** len(again) - 1)))


def _numbers(text: str) -> str:
    """Every number in one form: whole, or a fraction of whole numbers. Raises Unread where two numbers meet."""
    text = _COMMAS.sub(lambda m: m[0].replace(",", "") if _depth(text, m.start()) == 0 else m[0], text)
    text = _GROUPS.sub(lambda m: m[1] + m[2].replace(" ", ""), text)
    text = _MIXED.sub(_mixed, text)
    text = _REPEATING.sub(_repeating, text)
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    if found := _SIDE_BY_SIDE.search(text):
        raise Unread(f"two numbers stand side by side at {found[0]!r}")
    return _DECIMAL.sub(lambda m: _fraction(Fraction(f"{m[1] or m[3] or 0}.{m[2] or m[4]}")), text)


def _depth(text: str, place: int) -> int:
    """How many brackets are open at a place."""
    return sum(text.count(one, 0, place) for one in "([{") - sum(text.count(one, 0, place) for one in ")]}")


def _angles(text: str) -> tuple[str, str]:
    """(text, unit): degrees are a unit, and hundred-and-eightieths of pi in the argument of a function."""
    if "°" not in text:
        return text, ""
    if re.search(r"\\(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)", text):
        return _DEGREES.sub(r"{\\frac{\1 \\pi}{180}}", text), ""
    return text.replace("°", " ").strip(), "degree"


# ---- all of it ----

_NAMED = re.compile(rf"(?<![\\A-Za-z])({'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![A-Za-z])")


def written(answer: str) -> Written:
    """How an answer is written. Raises Unread, with the reason, where its meaning is not certain."""
    text = _unified(answer)
    if not text:
        raise Unread("nothing is written")
    if (word := _as_text(text)) is not None:
        return Written(text=word) if len(word) > 1 else Written(latex=word)
    if (numeral := _based(text)) is not None:
        return numeral
    if text.startswith((r"\ne", "=", "<", ">", r"\le", r"\ge", r"\not", r"\approx")) and not text.startswith(r"\left"):
        raise Unread("a relation without a left side")
    text, unit, percent = _without_unit(text)
    text, angle = _angles(text)
    decimal = _ALONE.fullmatch(text)
    text = _NAMED.sub(lambda m: FUNCTIONS[m[1]] + " ", _numbers(text))
    for found in _TEXT.finditer(text):
        if found[1].strip().casefold() not in ("or", "and", ""):
            raise Unread(f"the words {found[1].strip()!r} stand inside of it")
    for found in _WORD.finditer(_ENVIRONMENT.sub(" ", _TEXT.sub(" ", text))):
        if found[0] not in ("or", "and", "begin", "end") and (len(found[0]) > 3 or found[0].lower() in SHORT_WORDS):
            raise Unread(f"{found[0]!r} is a word, and neither a function nor a unit that is known")
    places = None if decimal is None else (len(decimal[2]), len((decimal[1] + decimal[2]).lstrip("0")))
    return Written(latex=text, unit=unit or angle, percent=percent, decimal=places)
