"""Strict mathematics: an expression's LaTeX cut into its signs, and what the signs are."""

import re

from srpo_recipe.verify.mathematics.notation import Unread

DEEPEST = 60  # brackets inside of each other

TOKEN = re.compile(r"\s*(\d+|\\[A-Za-z]+|\\.|[A-Za-z]|.)", re.DOTALL)
TIMES = (r"\cdot", r"\times", r"\ast", "*")
OVER = ("/", r"\div")
OPEN = {"(": ")", "[": "]", "{": "}", r"\lvert": r"\rvert", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
GREEK = {
    rf"\{name}"
    for name in (
        "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi psi "
        "omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
    ).split()
}
FUNCTIONS = {
    r"\sin": "sin", r"\cos": "cos", r"\tan": "tan", r"\cot": "cot", r"\sec": "sec", r"\csc": "csc", r"\arcsin": "asin",
    r"\arccos": "acos", r"\arctan": "atan", r"\sinh": "sinh", r"\cosh": "cosh", r"\tanh": "tanh", r"\ln": "log", r"\exp": "exp",
    r"\log": "log10", r"\lg": "log10",
}  # fmt: skip
INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan"}


class Tokens:
    """The signs of an expression, taken one after the other."""

    def __init__(self, latex: str):
        self.latex, self.place, self.depth = latex, 0, 0
        self.tokens = [found[1] for found in TOKEN.finditer(latex.strip())]

    @property
    def next(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self) -> str:
        token = self.next
        if token is None:
            raise Unread(f"{self.latex!r} ends too early")
        self.place += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unread(f"{token!r} is missing in {self.latex!r}")
