"""Verifiers: the figure's second box, from a response to a reward.

    choice.py, tool_use.py, math.py   one function per benchmark kind, a row of the table VERIFIERS
    contract.py, adversarial.py       what a verifier is, and a test that any of them can be put to
    pool.py, rewards.py               a verifier and a reward function under hard limits of time, memory and output
    processes/                        how the limits are kept
    shaping.py                        optional terms on top of the verdict, off by default
    settings.py                       the section srpo.verifier
    functions.py                      verifiers of the user's own, by name
    failures.py                       what is kept of failed verifications
    score.py                          responses from a file: python -m srpo_recipe.verify

Nothing here imports verl, ray or torch. What verl's reward workers call is training/reward.py.
"""

from functools import partial
from importlib.util import find_spec

from srpo_recipe.verify import choice, math, tool_use
from srpo_recipe.verify.contract import FAILURES, MODES, Verdict, Verifier
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.mathematics import published
from srpo_recipe.verify.mathematics.reading import PERCENT

__all__ = ["BENCHMARKS", "FAILURES", "MODES", "PERCENT", "VERIFIERS", "Verdict", "Verifier", "resolve"]

VERIFIERS: dict[str, dict[str, Verifier]] = {
    "choice": {"strict": choice.strict, "published": choice.published},
    "tool_use": {"strict": tool_use.strict, "published": tool_use.published},
    "math": {"strict": math.verify, "published": published.verify},
}

# Who judges which benchmark (data/tasks.py has where each is from); config/task/<name>.yaml says the same to training.
BENCHMARKS: dict[str, str] = {
    **dict.fromkeys(("chemistry", "physics", "biology", "material"), "choice"),
    "tooluse": "tool_use",
    **dict.fromkeys(("math", "aime24", "aime25", "hmmt25", "olympiadbench", "minerva"), "math"),
}


def resolve(name: str, mode: str = "strict", percent: str = PERCENT[0]) -> Verifier:
    """The verifier `name` in `mode`. percent: what `math` makes of a percent sign, one of PERCENT (docs/verifiers.md).

    name: a row of VERIFIERS, or a function of the user's: "package.module:function" or "path/to/file.py:function"
    (mode must then be strict). Raises ValueError with the mend for an unknown name or mode, and when the function
    cannot be had.
    """
    if mode not in MODES:
        raise ValueError(f"verifier mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if name in VERIFIERS:
        if name == "math" and find_spec("math_verify") is None:
            raise ValueError("the verifier math needs math-verify: pip install 'srpo_recipe[math]'")
        return partial(math.verify, percent=percent) if (name, mode) == ("math", "strict") else VERIFIERS[name][mode]
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise ValueError(
            f"verifier {name!r} is unknown; choose one of {', '.join(VERIFIERS)}, or name a function of your own: "
            "package.module:function or path/to/file.py:function"
        )
    if mode != "strict":
        raise ValueError(f"verifier {name!r} has no mode {mode!r}: a function of your own is always strict")
    try:
        return function_at(name)
    except ValueError as error:
        raise ValueError(f"verifier {name!r}: {error}") from error
