"""What a worker can be asked to run. An opener is called once in a worker; what it returns is called for every call, with the
call's arguments, and gives something that JSON can hold.
"""

import asyncio
import base64
import dataclasses
import inspect
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

from srpo_recipe.verify import resolve
from srpo_recipe.verify.contract import Verdict, checked, entries
from srpo_recipe.verify.functions import function_at


def verifier(name: str, mode: str, percent: str) -> Callable[[str, str], dict[str, Any]]:
    """A verifier, as for `srpo_recipe.verify.resolve`; the fields of its verdict."""
    judge = resolve(name, mode, percent)
    if name == "math":
        # Already there, unless the server was started for another verifier.
        import srpo_recipe.verify.warm  # noqa: F401
    names = [one.name for one in dataclasses.fields(Verdict)]

    def run(response: str, truth: str) -> dict[str, Any]:
        verdict = checked(judge(response, truth))
        return {one: getattr(verdict, one) for one in names}

    return run


def reward(name: str, fixed: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """A reward function, as for `functions.function_at`, plain or async; a dictionary of what it gives, in plain values.

    fixed: arguments that it always gets. A call's one argument is the others, packed by the program.
    """
    function = function_at(name)

    def run(packed: str) -> dict[str, Any]:
        given = function(**{**pickle.loads(base64.b64decode(packed)), **fixed})
        return entries(asyncio.run(awaited(given)) if inspect.isawaitable(given) else given)

    return run


async def awaited(given: Awaitable) -> Any:
    """For `asyncio.run`, which takes coroutines alone."""
    return await given


OPENERS: dict[str, Callable[..., Callable[..., Any]]] = {"verifier": verifier, "reward": reward}
