"""Makes srpo.verifier verl's custom reward function, and puts one of the user's own under its limits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe.method.options import POINTS
from srpo_recipe.verify import resolve
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.settings import VerifierConfig, require

REWARD_MODULE, VERIFIER, LIMITED = "pkg://srpo_recipe.training.reward", "compute_score", "limited_score"
LIMITS = ("time_limit", "processes", "memory_mb")
OURS = "pkg://srpo_recipe."  # what this package brings is tested, and needs no limit; a slash is a dot to verl


def limited(config: DictConfig) -> bool:
    """Whether the run has a reward function of the user's that can have limits. One that asks a reward model's server cannot:
    its arguments live in the reward worker.
    """
    path = config.reward.custom_reward_function.path
    own = path is not None and not _dotted(path).startswith(OURS)
    return (own and not config.reward.reward_model.enable) or wired(config)


def wired(config: DictConfig) -> bool:
    """Whether `wire` has put the run's reward function under limits."""
    custom = config.reward.custom_reward_function
    return custom.path == REWARD_MODULE and custom.name == LIMITED


def seconds_each(config: DictConfig) -> float:
    """How much longer a reward may take for each rollout that an agent-loop worker has waiting: all of them may take the whole
    limit, the other workers have as many, and one reward worker may have them all. 0 where there are no limits.
    """
    section = config.srpo.verifier
    if section.name is None and not wired(config):
        return 0.0
    return section.time_limit / section.processes * config.actor_rollout_ref.rollout.agent.num_workers


def check(config: DictConfig, settings: VerifierConfig) -> None:
    """Raise ValueError for a verifier or a reward function that cannot be had, for two rewards at once, and for settings of no
    verifier.
    """
    _check_function(config)
    if settings.name is None:
        may_differ = LIMITS if limited(config) and settings.limits else ()
        used = {name: getattr(settings, name) for name in may_differ}
        if limited(config):
            used["limits"] = settings.limits
        require(
            settings == replace(VerifierConfig(), **used),
            "srpo.verifier has settings but no name: choose srpo.verifier.name, or leave the section as it is for "
            "a task that brings its own reward function"
            + (f" (only {', '.join(LIMITS)} hold for it, and limits=false takes them away)" if limited(config) else ""),
        )
        return
    path = config.reward.custom_reward_function.path
    require(
        path in (None, REWARD_MODULE) and not wired(config),
        f"srpo.verifier.name={settings.name} and reward.custom_reward_function.path={path} are two rewards: set "
        "one of them to null",
    )
    require(
        settings.limits, "srpo.verifier.limits=false is for a reward function of your own: a verifier has its limits"
    )
    try:
        resolve(settings.name, settings.mode)
    except ValueError as error:
        raise ValueError(f"srpo.verifier: {error}") from error


def _check_function(config: DictConfig) -> None:
    """The user's own reward function is there."""
    custom = config.reward.custom_reward_function
    if custom.path is None or wired(config) or _dotted(custom.path).startswith(OURS):
        return
    place = _dotted(custom.path).removeprefix("pkg://").removeprefix("file://")
    try:
        function_at(f"{place}:{custom.name}")
    except ValueError as error:
        raise ValueError(
            f"reward.custom_reward_function.path={custom.path}, name={custom.name}: {error}; correct them, or set path to null"
        ) from None


def wire(config: DictConfig) -> None:
    """Make srpo.verifier, where it names one, verl's custom reward function; else put the user's own under limits. Paths of
    functions become absolute: workers run elsewhere.
    """
    section, custom = config.srpo.verifier, config.reward.custom_reward_function
    for point in POINTS.values():
        OmegaConf.update(config, point.key, _absolute(OmegaConf.select(config, point.key)))
    if section.name is not None:
        section.name = _absolute(section.name)
        kwargs = {
            "verifier": OmegaConf.to_container(section, resolve=True),
            "run_dir": config.run.dir,
            "feedback": config.srpo.teacher.feedback != "off",
        }
        _set(config, VERIFIER, kwargs)
    elif section.limits and limited(config) and not wired(config):
        place = _dotted(custom.path).removeprefix("pkg://").removeprefix("file://")
        kwargs = {
            "function": _absolute(f"{place}:{custom.name}"),
            "fixed": OmegaConf.to_container(custom.get("reward_kwargs") or OmegaConf.create({}), resolve=True),
            "limits": {name: section[name] for name in LIMITS},
            "run_dir": config.run.dir,
        }
        _set(config, LIMITED, kwargs)
    elif custom.path is not None and not wired(config) and custom.path.endswith(".py") and "://" not in custom.path:
        custom.path = str(Path(custom.path).absolute())


def as_given(config: dict[str, Any]) -> dict[str, Any]:
    """The section reward.custom_reward_function of a plain config as the user gave it, where `wire` put it under limits."""
    custom = config["reward"]["custom_reward_function"]
    if (custom.get("path"), custom.get("name")) != (REWARD_MODULE, LIMITED):
        return custom
    place, _, name = custom["reward_kwargs"]["function"].rpartition(":")
    path = place if place.endswith(".py") else f"pkg://{place}"
    return {"path": path, "name": name, "reward_kwargs": custom["reward_kwargs"]["fixed"]}


def _dotted(path: str) -> str:
    """A path of verl's, where it names a package with dots in it."""
    scheme = "pkg://"
    return scheme + path.removeprefix(scheme).replace("/", ".") if path.startswith(scheme) else path


def _absolute(name: str) -> str:
    """The name of a function whose file, where it is in one, is absolute."""
    place, colon, function = name.rpartition(":")
    return f"{Path(place).absolute()}{colon}{function}" if place.endswith(".py") else name


def _set(config: DictConfig, name: str, kwargs: dict[str, Any]) -> None:
    with open_dict(config):
        config.reward.custom_reward_function = {"path": REWARD_MODULE, "name": name, "reward_kwargs": kwargs}
