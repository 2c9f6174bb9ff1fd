"""What a run's own config.yaml says of how its answers are asked for and judged, for what the command line leaves open."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.data.checks import CHAT_SWITCHES
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.settings.wire import REWARD_MODULE, as_given
from srpo_recipe.verify.settings import VerifierConfig

PACKAGED = "pkg://"


class Judged(NamedTuple):
    """How a run judges. verifier, reward: as --verifier and --reward, None for neither; options: reward_kwargs, as JSON;
    right_from: a sample is right when its reward reaches this.
    """

    verifier: str | None = None
    reward: str | None = None
    options: str = ""
    mode: str = VerifierConfig.mode
    time_limit: float = VerifierConfig.time_limit
    percent: str = VerifierConfig.percent
    right_from: float = SRPOConfig.correct_threshold


def config_of(model: str) -> Path | None:
    """The config.yaml of the run that `model`, a run's folder or a checkpoint in it, belongs to; None where there is none."""
    path = Path(model)
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    path = path.resolve()
    return next(
        (place / "config.yaml" for place in (path, *path.parents[:2]) if (place / "config.yaml").is_file()), None
    )


def fill(args: argparse.Namespace) -> Judged:
    """Give the arguments that were left open the run's values, or the defaults of the evaluation, and say which are the run's.

    Returns how the run judges. Raises ValueError, with the file, for a config.yaml that is no run's.
    """
    file = config_of(args.model)
    config = None if file is None else _read(file)
    judged = Judged() if config is None else _judged(config)
    chat: Any = CHAT_SWITCHES
    system = None
    if config is not None:
        asked = OmegaConf.select(config, "data.apply_chat_template_kwargs")
        chat = OmegaConf.to_container(asked) if isinstance(asked, DictConfig) else {}
        system = OmegaConf.select(config, "srpo.system_prompt")
    values = {"time_limit": judged.time_limit, "percent": judged.percent, "right_from": judged.right_from}
    values |= {"chat_options": chat, "system_prompt": system}
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if file is not None:
        rule = judged.reward or (f"{judged.verifier}, {judged.mode}" if judged.verifier else "verl's, by data_source")
        told = {"judged by": rule} | {name.replace("_", " "): value for name, value in values.items()}
        print(f"{file}: " + "; ".join(f"{name} {value}" for name, value in told.items()), flush=True)
    return judged


def _read(file: Path) -> DictConfig:
    try:
        config = OmegaConf.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # of the YAML library, which has no common one with OmegaConf
        raise ValueError(f"{file} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("srpo"), DictConfig):
        raise ValueError(f"{file} is not the config of a run: it has no section srpo")
    return config


def _judged(config: DictConfig) -> Judged:
    verifier: Any = OmegaConf.select(config, "srpo.verifier") or {}
    function: Any = {}
    if isinstance(OmegaConf.select(config, "reward.custom_reward_function"), DictConfig):
        plain: Any = OmegaConf.to_container(config)
        function = as_given(plain)
    limits = {name: verifier[name] for name in ("mode", "time_limit", "percent") if verifier.get(name) is not None}
    if (right_from := OmegaConf.select(config, "srpo.correct_threshold")) is not None:
        limits["right_from"] = float(right_from)
    if verifier.get("name"):
        return Judged(verifier=verifier["name"], **limits)
    path = function.get("path")
    if not path or path == REWARD_MODULE:
        return Judged(**limits)
    options = function.get("reward_kwargs")
    place = path.removeprefix(PACKAGED)
    return Judged(
        reward=f"{place}:{function.get('name') or 'compute_score'}",
        options=json.dumps(options) if options else "",
        **limits,
    )
