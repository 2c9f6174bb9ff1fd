r"""Strict mathematics: numbers and expressions of LaTeX as sympy has them, or `Unread` where they could mean two things.

A small reader of our own: math-verify's parser reads `2(3)` as 23, `1/2x` one way of two, and drops `'`. Numbers are worked out
as they
are read, in exact arithmetic (worked_out.py).
"""

from typing import Any

from srpo_recipe.verify.mathematics.notation import Unread
from srpo_recipe.verify.mathematics.tokens import DEEPEST, FUNCTIONS, GREEK, INVERSE, OPEN, OVER, TIMES, Tokens
from srpo_recipe.verify.mathematics.worked_out import applied, binomial, factorial, over, power, root, sympy, whole


def read_expression(latex: str) -> Any:
    """The sympy expression that the LaTeX means. Raises Unread."""
    reader = _Reader(latex)
    value = reader.sum()
    if reader.next is not None:
        raise Unread(f"{reader.next!r} is not understood in {latex!r}")
    return value


class _Reader(Tokens):
    """Recursive descent: a sum of products of powers."""

    # ---- sums, products, powers ----

    def sum(self) -> Any:
        value = self.signed()
        while self.next in ("+", "-"):
            sign = self.take()
            if self.next in ("+", "-"):
                raise Unread(f"two signs side by side in {self.latex!r}")
            term = self.product()
            value = value + term if sign == "+" else value - term
        return value

    def signed(self) -> Any:
        if self.next in ("+", "-"):
            return -self.product() if self.take() == "-" else self.product()
        return self.product()

    def product(self) -> Any:
        value, number_before = self.power(), self._was_number()
        divided = False
        while True:
            token = self.next
            if token in TIMES or token in OVER:
                self.take()
                negative = self.next == "-" and self.take() == "-"
                factor = self.power()
                factor = -factor if negative else factor
                divided = token in OVER
                value = over(value, factor) if divided else value * factor
            elif self._begins_factor():
                if divided:
                    raise Unread(f"{self.latex!r} may be divided by one factor or by two")
                if token is not None and token.isdigit():
                    raise Unread(f"a number follows a factor in {self.latex!r}")
                if number_before and token == r"\frac":
                    raise Unread(f"{self.latex!r} may be a sum or a product")
                value = value * self.power()
            else:
                return value
            number_before = self._was_number()

    def _was_number(self) -> bool:
        return self.tokens[self.place - 1].isdigit()

    def _begins_factor(self) -> bool:
        token = self.next
        if token is None:
            return False
        known = token in OPEN or token in GREEK or token in FUNCTIONS
        return token.isalnum() or known or token in (r"\frac", r"\sqrt", r"\pi", r"\binom", r"\infty")

    def power(self) -> Any:
        value = self.primary()
        if self.next == "!":
            self.take()
            value = factorial(value)
        if self.next == "^":
            self.take()
            value = power(value, self._script())
            if self.next in ("^", "!"):
                raise Unread(f"{self.latex!r} has two powers on each other")
        if self.next in ("!", "'"):
            raise Unread(f"{self.next!r} is not understood in {self.latex!r}")
        return value

    def _script(self) -> Any:
        """An exponent: in braces, or one sign or number."""
        if self.next == "{":
            return self._group()
        negative = self.next == "-" and self.take() == "-"
        token = self.take()
        if token.isdigit():
            value = sympy().Integer(whole(token))
        elif token.isalpha() or token in GREEK or token == r"\pi":
            value = self._named(token)
        elif token == "(":
            self.place -= 1
            value = self._group()
        else:
            raise Unread(f"the exponent {token!r} in {self.latex!r}")
        return -value if negative else value

    # ---- what stands alone ----

    def primary(self) -> Any:
        token = self.next
        if token in OPEN:
            return self._group()
        self.take()
        if token == "|":
            return self._absolute()
        if token == r"\frac":
            top, bottom = self._argument(), self._argument()
            return over(top, bottom)
        if token == r"\sqrt":
            return self._root()
        if token == r"\binom":
            return self._binomial()
        if token in FUNCTIONS:
            return self._function(token)
        assert token is not None
        if token.isdigit():
            return sympy().Integer(whole(token))
        return self._named(token)

    def _named(self, token: str) -> Any:
        library = sympy()
        constants = {"e": library.E, "i": library.I, r"\pi": library.pi, r"\infty": library.oo}
        if token in constants and self.next != "_":
            return constants[token]
        if not (token.isalpha() and len(token) == 1) and token not in GREEK:
            raise Unread(f"{token!r} is not understood in {self.latex!r}")
        name = token.lstrip("\\")
        if self.next == "_":
            self.take()
            name += f"_{self._subscript()}"
        if self.next == "(" and token in ("f", "g", "h") and self._argument_is_a_letter():
            raise Unread(f"{self.latex!r} may be a function or a product")
        return library.Symbol(name)

    def _argument_is_a_letter(self) -> bool:
        return self.place + 1 < len(self.tokens) and self.tokens[self.place + 1].isalpha()

    def _subscript(self) -> str:
        token = self.take()
        if token != "{":
            return token
        end = self.tokens.index("}", self.place) if "}" in self.tokens[self.place :] else len(self.tokens)
        inside, self.place = self.tokens[self.place : end], end
        self.expect("}")
        if not all(part.isalnum() for part in inside):
            raise Unread(f"the index {''.join(inside)!r}")
        return "".join(inside)

    def _group(self) -> Any:
        opening = self.take()
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unread("too many brackets inside of each other")
        value = self.sum()
        self.expect(OPEN[opening])
        self.depth -= 1
        wrapped = {r"\lvert": "Abs", r"\lfloor": "floor", r"\lceil": "ceiling"}.get(opening)
        return getattr(sympy(), wrapped)(value) if wrapped else value

    def _absolute(self) -> Any:
        value = self.sum()
        self.expect("|")
        return sympy().Abs(value)

    def _argument(self) -> Any:
        r"""What \frac and \sqrt take: a group, one letter, or one digit of a number."""
        if self.next == "{":
            return self._group()
        token = self.take()
        if not token.isdigit():
            return self._named(token)
        if len(token) > 1:  # \frac12
            self.place -= 1
            self.tokens[self.place] = token[1:]
        return sympy().Integer(whole(token[0]))

    def _root(self) -> Any:
        degree = sympy().Integer(2)
        if self.next == "[":
            degree = self._group()
        return root(self._argument(), degree)

    def _binomial(self) -> Any:
        return binomial(self._argument(), self._argument())

    # ---- functions ----

    def _function(self, token: str) -> Any:
        name, raised, base = FUNCTIONS[token], None, None
        if self.next == "_" and name == "log10":
            self.take()
            base = self._script()
        if self.next == "^":
            self.take()
            raised = self._script()
            if raised == -1:
                if name not in INVERSE:
                    raise Unread(f"{token}^{{-1}}")
                name, raised = INVERSE[name], None
        value = applied(name, self._operand(), base)
        return value if raised is None else power(value, raised)

    def _operand(self) -> Any:
        """A group, or a product without signs between that no division follows: `\\sin 2x`."""
        if self.next in ("(", "{", "["):
            value = self._group()
            if self.next == "^":
                raise Unread(f"a power behind a function's argument in {self.latex!r}")
            return value
        if not self._begins_factor() or self.next in FUNCTIONS:
            raise Unread(f"a function without an argument in {self.latex!r}")
        value = self.power()
        while (
            self._begins_factor()
            and self.next not in FUNCTIONS
            and self.next not in OPEN
            and not str(self.next).isdigit()
        ):
            value = value * self.power()
        if self.next in OVER:
            raise Unread(f"{self.latex!r} may divide the function or its argument")
        return value
