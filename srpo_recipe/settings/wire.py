"""Makes srpo.verifier verl's custom reward function."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe.verify import resolve
from srpo_recipe.verify.settings import VerifierConfig, require

REWARD_MODULE = "pkg://srpo_recipe.training.reward"


def check(config: DictConfig, settings: VerifierConfig) -> None:
    """Raise ValueError for a verifier that cannot be had, for two rewards at once, and for settings of no verifier."""
    if settings.name is None:
        require(
            settings == VerifierConfig(),
            "srpo.verifier has settings but no name: choose srpo.verifier.name, or leave the section as it is for "
            "a task that brings its own reward function",
        )
        return
    path = config.reward.custom_reward_function.path
    require(
        path in (None, REWARD_MODULE),
        f"srpo.verifier.name={settings.name} and reward.custom_reward_function.path={path} are two rewards: set "
        "one of them to null",
    )
    try:
        resolve(settings.name, settings.mode)
    except ValueError as error:
        raise ValueError(f"srpo.verifier: {error}") from error


def wire(config: DictConfig) -> None:
    """Make srpo.verifier, where it names one, verl's custom reward function. Paths become absolute: workers run
    elsewhere.
    """
    name = config.srpo.verifier.name
    if name is None:
        return
    place, colon, function = name.rpartition(":")
    if place.endswith(".py"):
        config.srpo.verifier.name = f"{Path(place).absolute()}{colon}{function}"
    with open_dict(config):
        config.reward.custom_reward_function = {
            "path": REWARD_MODULE,
            "name": "compute_score",
            "reward_kwargs": {
                "verifier": OmegaConf.to_container(config.srpo.verifier, resolve=True),
                "run_dir": config.run.dir,
                "feedback": config.srpo.teacher.feedback != "off",
            },
        }
