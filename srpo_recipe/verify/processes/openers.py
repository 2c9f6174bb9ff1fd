"""What a worker can be asked to run. An opener is called once in a worker; what it returns is called for every call, with the
call's arguments, and gives something that JSON can hold.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from srpo_recipe.verify import resolve
from srpo_recipe.verify.contract import Verdict, checked


def verifier(name: str, mode: str) -> Callable[[str, str], dict[str, Any]]:
    """A verifier, as for `srpo_recipe.verify.resolve`; the fields of its verdict."""
    judge = resolve(name, mode)
    if name == "math":
        # Already there, unless the server was started for another verifier.
        import srpo_recipe.verify.warm  # noqa: F401
    names = [one.name for one in dataclasses.fields(Verdict)]

    def run(response: str, truth: str) -> dict[str, Any]:
        verdict = checked(judge(response, truth))
        return {one: getattr(verdict, one) for one in names}

    return run


OPENERS: dict[str, Callable[..., Callable[..., Any]]] = {"verifier": verifier}
