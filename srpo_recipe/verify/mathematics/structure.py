r"""Strict mathematics: what an answer is as a whole. A number or an expression, or made of such: a list, a tuple, an interval, a
set, a relation, a matrix, a ratio.
"""

import re
from dataclasses import dataclass
from typing import Any

from srpo_recipe.verify.mathematics.arithmetic import read_expression
from srpo_recipe.verify.mathematics.notation import Unread
from srpo_recipe.verify.mathematics.worked_out import sympy

RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\lt": "<", r"\gt": ">", r"\ne": "!="}
_RELATION = re.compile(r"\\(?:le|ge|lt|gt|ne)(?![A-Za-z])|[=<>]")
_NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?")
_IN = re.compile(r"^(?:[A-Za-z]|\\[A-Za-z]+)\s*\\in(?![A-Za-z])\s*")
_OR = re.compile(
    r"\\text\{\s*(?:or|and)\s*\}|(?<![\\A-Za-z])(?:or|and)(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])"
)
_MATRIX = re.compile(r"\\begin\{([pbvB]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\lvert": r"\rvert"}
_MARKS = re.compile(
    r"\\[{}]|\\[lr]vert(?![A-Za-z])|[()\[\]{},;:|]|\\cup(?![A-Za-z])|\\begin(?![A-Za-z])|\\end(?![A-Za-z])"
)
MOST_PARTS = 200


@dataclass(frozen=True)
class Value:
    """kind: number (also an expression with letters), list (unordered), tuple (ordered, in the brackets `marks`), set (sympy
    has it), relation (marks: = or <, <=; parts[0] is left minus right), matrix (marks: its shape), ratio. name: of `x = 5`, the
    letter.
    """

    kind: str
    parts: tuple[Any, ...]
    marks: str = ""
    name: str = ""


def read_value(latex: str) -> Value:
    """What the LaTeX is. Raises Unread."""
    text = _stripped(latex)
    if _IN.match(text):
        text = _stripped(_IN.sub("", text))
    pieces = _OR.split(text)
    if len(pieces) > 1:
        both = {"and" in word or "land" in word or "wedge" in word for word in _OR.findall(text)}
        return _joined([piece.strip() for piece in pieces], both)
    if len(parts := _split(text, r"\cup")) > 1:
        return Value("set", (sympy().Union(*(as_set(read_value(part)) for part in parts)),))
    if found := _MATRIX.fullmatch(text):
        return _matrix(found[2])
    if len(parts := _split(text, ",", ";")) > 1:
        return Value("list", tuple(read_value(part) for part in parts))
    if _RELATION.search(text):
        return _relation(text)
    if (inside := _enclosed(text)) is not None:
        return inside
    if len(parts := _split(text, ":")) > 1:
        return Value("ratio", tuple(read_expression(part) for part in parts))
    if text in (r"\emptyset", r"\{ \}", r"\{\}"):
        return Value("set", (sympy().S.EmptySet,))
    if found := re.fullmatch(r"\\mathbb\s*\{?R\}?", text):
        return Value("set", (sympy().S.Reals,))
    if re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return _both_signs(text)
    return Value("number", (read_expression(text),))


def _stripped(text: str) -> str:
    text = text.strip()
    while text.startswith("{") and text.endswith("}") and _closes(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _joined(pieces: list[str], both: set[bool]) -> Value:
    """Parts that words join: the union of what relations allow, or what they all do, or a list. both: of the words, whether each
    is `and`, which between sets, and where nothing is left, may mean either.
    """
    if not all(pieces):
        raise Unread("a word that joins nothing")
    values = [read_value(piece) for piece in pieces]
    if all(value.kind in ("relation", "set") and value.marks != "=" for value in values):
        letters = {letter for value in values if value.kind == "relation" for letter in value.parts[0].free_symbols}
        if len(letters) > 1:
            raise Unread("inequalities of several letters")
        sets = [as_set(value) for value in values]
        if both == {False}:
            return Value("set", (sympy().Union(*sets),))
        held = sympy().Intersection(*sets)
        if both != {True} or any(value.kind == "set" for value in values) or held.is_empty is not False:
            raise Unread("an `and` that may be an `or`")
        return Value("set", (held,))
    flat = [part for value in values for part in (value.parts if value.kind == "list" else (value,))]
    return Value("list", tuple(flat))


def _both_signs(text: str) -> Value:
    if re.search(r"\\mp(?![A-Za-z])", text) or len(re.findall(r"\\pm(?![A-Za-z])", text)) > 1:
        raise Unread("several signs that may be both")
    readings = [read_expression(re.sub(r"\\pm(?![A-Za-z])", sign, text, count=1)) for sign in "+-"]
    return Value("list", tuple(Value("number", (one,)) for one in readings))


# ---- brackets ----


def _closes(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; -1 where it does not."""
    depth = 0
    for found in _MARKS.finditer(text, start):
        if found[0] in ("(", "[", "{", r"\{", r"\lvert"):
            depth += 1
        elif found[0] in (")", "]", "}", r"\}", r"\rvert"):
            depth -= 1
            if depth == 0:
                return found.end() - 1
    return -1


def _split(text: str, *marks: str) -> list[str]:
    """The parts between marks that stand outside of brackets and matrices."""
    depth, start, parts = 0, 0, []
    for found in _MARKS.finditer(text):
        mark = found[0]
        if mark in ("(", "[", "{", r"\{", r"\lvert", r"\begin"):
            depth += 1
        elif mark in (")", "]", "}", r"\}", r"\rvert", r"\end"):
            depth -= 1
        elif depth == 0 and mark in marks:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    parts.append(text[start:].strip())
    if len(parts) > MOST_PARTS or (len(parts) > 1 and not all(parts)):
        raise Unread("an empty place between two marks, or very many of them")
    return parts


def _enclosed(text: str) -> Value | None:
    """A tuple, an interval or a set in its brackets; None for what is not wholly inside of a pair, and for mere parentheses."""
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    if opening not in ("(", "[", r"\{") or _closes(text, 0) != len(text) - 1:
        return None
    closing = r"\}" if text.endswith(r"\}") else text[-1]
    inside = text[len(opening) : -len(closing)].strip()
    if opening == r"\{":
        if closing != r"\}" or len(_split(inside, ":", "|")) > 1:
            raise Unread("a set that is described")
        return Value("list", tuple(read_value(part) for part in _split(inside, ",", ";"))) if inside else None
    parts = _split(inside, ",", ";")
    if len(parts) > 1:
        return Value("tuple", tuple(read_value(part) for part in parts), opening + closing)
    if (opening, closing) == ("(", ")"):
        return read_value(inside)
    raise Unread("a square bracket around a single thing")


def _matrix(body: str) -> Value:
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    cells = [[Value("number", (read_expression(cell),)) for cell in row.split("&")] for row in rows]
    if len({len(row) for row in cells}) != 1:
        raise Unread("a matrix whose rows differ in length")
    return Value("matrix", tuple(cell for row in cells for cell in row), f"{len(cells)}x{len(cells[0])}")


# ---- relations ----


def _relation(text: str) -> Value:
    signs = [RELATIONS[found[0]] for found in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if not all(sides):
        raise Unread("a relation without one of its sides")
    if set(signs) == {"="}:
        return _equation(sides)
    if signs == ["!="]:
        letter, value = read_expression(sides[0]), read_expression(sides[1])
        if not letter.is_Symbol or not value.is_number:
            raise Unread("an inequality of other than a letter and a number")
        return Value("set", (sympy().Complement(sympy().S.Reals, sympy().FiniteSet(value)),))
    if len(signs) == 1:
        left, right = (read_expression(side) for side in sides)
        difference = left - right if signs[0] in ("<", "<=") else right - left
        return Value("relation", (difference,), "<" if signs[0] in ("<", ">") else "<=")
    if len(signs) == 2 and {sign[0] for sign in signs} in ({"<"}, {">"}):
        parts = [_relation(f"{a}{_latex(sign)}{b}") for a, sign, b in zip(sides, signs, sides[1:], strict=False)]
        return Value("set", (sympy().Intersection(*(as_set(part) for part in parts)),))
    raise Unread("a chain of relations")


def _latex(sign: str) -> str:
    return {"<": "<", ">": ">", "<=": r"\le ", ">=": r"\ge "}[sign]


def _equation(sides: list[str]) -> Value:
    name = sides[0].replace(" ", "")
    if _NAME.fullmatch(name):
        values = [read_value(side) for side in sides[1:]]
        if all(value.kind == "number" and value.parts == values[0].parts for value in values) or len(values) == 1:
            one = values[0]
            return Value(one.kind, one.parts, one.marks, name)
        raise Unread("several values for one letter")
    if len(sides) != 2:
        raise Unread("a chain of equations")
    left, right = (read_expression(side) for side in sides)
    if left.is_number and right.is_number:
        raise Unread("an equation between numbers")
    return Value("relation", (left - right,), "=")


def as_set(value: Value) -> Any:
    """The real numbers that a value stands for, as sympy has them. Raises Unread where that is not certain."""
    library = sympy()
    if value.kind == "set":
        return value.parts[0]
    if value.kind == "number" and value.parts[0].is_number:
        return library.FiniteSet(value.parts[0])
    if value.kind == "list" and not any(part.kind == "relation" for part in value.parts):
        return library.Union(*(as_set(part) for part in value.parts))
    if value.kind == "tuple" and len(value.parts) == 2:
        ends = [part.parts[0] for part in value.parts]
        if all(part.kind == "number" and not part.name for part in value.parts) and all(
            end.is_extended_real for end in ends
        ):
            return library.Interval(*ends, value.marks[0] == "(", value.marks[1] == ")")
    if value.kind == "relation" and value.marks != "=" and len(value.parts[0].free_symbols) == 1:
        try:
            relation = value.parts[0] < 0 if value.marks == "<" else value.parts[0] <= 0
            letter = library.Symbol("x", real=True)
            return relation.xreplace({next(iter(value.parts[0].free_symbols)): letter}).as_set()
        except (NotImplementedError, ValueError, TypeError) as error:
            raise Unread("an inequality that cannot be solved") from error
    raise Unread("no set of real numbers")
