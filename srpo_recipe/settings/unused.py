"""Settings of the method that have no effect beside others, or another name than they should: they would be believed."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.method.route import ROUTE_RULES
from srpo_recipe.settings.kinds import shown
from srpo_recipe.settings.options import takes
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify.settings import require

# Settings, and what has to be so that they have an effect.
MIX = ("srpo.mix",)
BETA = ("srpo.beta",)
DISTILLED = (
    "srpo.beta",
    "srpo.weight",
    "srpo.weight_options",
    "srpo.target",
    "srpo.target_options",
    "srpo.alpha",
)
POLICY = ("srpo.advantage", "srpo.advantage_options")
DEMONSTRATION = ("srpo.teacher.demonstration",)
TEACHER = (
    "srpo.teacher.kind",
    "srpo.teacher.ema_rate",
    "srpo.teacher.demonstration",
    "srpo.teacher.template",
    "srpo.teacher.overflow",
    "srpo.teacher.feedback",
)
EMA = ("srpo.teacher.ema_rate",)
# Rules of the table without a policy part, and all of it but the one that mixes.
WITHOUT_POLICY = ("sdpo", "sdpo_incorrect_only", "sdpo_correct_only")
FIXED = tuple(name for name in ROUTE_RULES if name != "advantage_mix")
FEEDBACK = ("srpo.teacher.feedback_template",)

# No published model has more; asked where the model's own number is not at hand.
LARGEST_VOCABULARY = 300_000
LEAST_BUFFER = 0.1  # MiB; one token's logits over a vocabulary of 26,214


def check(config: DictConfig, settings: SRPOConfig) -> None:
    """Raise ValueError, with the fix, for a setting that nothing would read, or a method's name on another's route."""
    route, mixes = settings.route, takes(settings, "route", "mix") and settings.route not in FIXED
    _without_effect(config, MIX, mixes, "it is the weight of method=advantage_mix")
    _without_effect(config, DISTILLED, settings.distils, f"srpo.route={route} has no teacher")
    _without_effect(config, TEACHER, settings.needs_teacher, f"srpo.route={route} has no teacher")
    weight = f"srpo.weight={settings.weight} does not ask it"
    _without_effect(config, BETA, takes(settings, "weight", "beta"), weight)
    _without_effect(config, POLICY, route not in WITHOUT_POLICY, f"srpo.route={route} has no policy part")
    replaced = settings.teacher.feedback == "replace"
    _without_effect(config, DEMONSTRATION, not replaced, "srpo.teacher.feedback=replace stands in its place")
    kind = settings.teacher.kind
    _without_effect(config, EMA, kind == "ema", f"srpo.teacher.kind is {kind}")
    on = settings.teacher.feedback != "off"
    _without_effect(config, FEEDBACK, on, "srpo.teacher.feedback is off")
    _named_as_it_is(config, settings)
    _teacher_fits(config, settings)
    _vocabulary(config, settings)
    require(
        settings.chunk_megabytes >= LEAST_BUFFER,
        f"srpo.chunk_megabytes={settings.chunk_megabytes}: set it to at least {LEAST_BUFFER}; a buffer holds the logits of one "
        "token in any case",
    )


def _without_effect(config: DictConfig, keys: tuple[str, ...], read: bool, why: str) -> None:
    defaults = OmegaConf.create({"srpo": OmegaConf.structured(SRPOConfig)})
    for key in keys:
        value, default = OmegaConf.select(config, key), OmegaConf.select(defaults, key)
        if read or value == default:
            continue
        name = config.method.name
        by_method = OmegaConf.select(_method(name) or OmegaConf.create(), key, default=default) != default
        fix = f"choose another method than {name}, which sets it" if by_method else f"leave it at {shown(default)}"
        raise ValueError(f"{key}={shown(value)} has no effect here ({why}): {fix}")


def _method(name: Any) -> DictConfig | None:
    """The file of a method in config/method; None for a method of the user's."""
    file = files("srpo_recipe_config") / "method" / f"{name}.yaml"
    if not str(name).isidentifier() or not file.is_file():
        return None
    found = OmegaConf.create(file.read_text(encoding="utf-8"))
    assert isinstance(found, DictConfig)
    return found


def _named_as_it_is(config: DictConfig, settings: SRPOConfig) -> None:
    """method.name of a file in config/method means that file's route."""
    name = config.method.name
    method = _method(name)
    if method is None:
        return
    route = OmegaConf.select(method, "srpo.route", default=SRPOConfig().route)
    like = f"choose method={settings.route}, or " if _method(settings.route) is not None else ""
    require(
        settings.route == route,
        f"srpo.route={settings.route} under the name of method={name}, whose route is {route}: {like}name your own with "
        "method.name=NAME",
    )


def _teacher_fits(config: DictConfig, settings: SRPOConfig) -> None:
    budget, prompt = settings.teacher.max_prompt_tokens, config.data.max_prompt_length
    require(
        not settings.needs_teacher or budget > prompt,
        f"srpo.teacher.max_prompt_tokens={budget} does not hold a question of data.max_prompt_length={prompt} and a "
        "demonstration after it: raise it",
    )


def _vocabulary(config: DictConfig, settings: SRPOConfig) -> None:
    path = config.actor_rollout_ref.model.path
    known = _vocabulary_of(path)
    largest = known or LARGEST_VOCABULARY
    require(
        not settings.needs_teacher or settings.top_k <= largest,
        f"srpo.top_k={settings.top_k} is more ids than "
        + (f"the {known} of {path}" if known else f"any model's vocabulary has (at most {largest})")
        + ": lower it; the paper has 100",
    )


def _vocabulary_of(path: Any) -> int | None:
    """Of a model in a folder here; None where its config.json does not say, which other checks look at."""
    try:
        found = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
