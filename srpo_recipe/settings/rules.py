"""Refuses settings that verl would run, but not as the method says: what `check` lets through runs as it reads."""

from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.read import needs_pass, read
from srpo_recipe.settings.refusals import CORRECTION, REFUSALS, ROLLOUT, TEACHER_REFUSALS, UNREAD, Key, Refusal
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.settings.wire import check as check_verifier
from srpo_recipe.verify.settings import require

ABSENT = object()


def check(config: DictConfig) -> SRPOConfig:
    """The typed settings. Raises ValueError, with key and mend, for what the method cannot do, or would not do as written."""
    check_table(config, REFUSALS)
    settings = read(config)
    if settings.needs_teacher:
        check_table(config, TEACHER_REFUSALS)
    check_unread(config, UNREAD)
    check_verifier(config, settings.verifier)
    check_batch(config)
    check_old_policy(config)
    check_correction(config)
    check_run(config)
    return settings


def check_table(config: DictConfig, rows: Iterable[Refusal]) -> None:
    for key, values, why in rows:
        value = OmegaConf.select(config, key, default=ABSENT)
        wanted = [OmegaConf.select(config, one) if isinstance(one, Key) else one for one in values]
        require(
            value is ABSENT or value in wanted,
            f"{key}={_shown(value)} is not supported: set it to {_shown(wanted[0])} ({why})",
        )


def check_unread(config: DictConfig, keys: dict[str, str]) -> None:
    """Only verl's own value of what nothing reads."""
    for section, instead in keys.items():
        default = dict(_leaves(OmegaConf.select(verl_defaults(), section, default=ABSENT), section))
        for key, value in _leaves(OmegaConf.select(config, section, default=ABSENT), section):
            mend = f"leave it at {_shown(default[key])}" if key in default else "leave it out"
            mend += f", and set {instead} if that is what you mean" if instead else ""
            require(value == default.get(key, ABSENT), f"{key}={_shown(value)} has no effect here: {mend}")


def check_batch(config: DictConfig) -> None:
    prompts, rollouts = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size
    require(rollouts > 1, f"{ROLLOUT}.n={rollouts}: a group needs at least 2 rollouts to have siblings")
    require(
        prompts % mini_batch == 0,
        f"data.train_batch_size={prompts} must be a multiple of "
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch}",
    )


def check_old_policy(config: DictConfig) -> None:
    need = needs_pass(config)
    if config.srpo.old_policy == "update" and need is not None:
        key, value, other = need
        raise ValueError(
            f"srpo.old_policy=update, but {key}={_shown(value)} needs the old policy before the update: set it to "
            f"{_shown(other)}, or srpo.old_policy=auto"
        )


def check_correction(config: DictConfig) -> None:
    """verl's rollout correction, whose own errors come in the first step."""
    correction = config.algorithm.rollout_correction
    level, threshold, rejection = correction.rollout_is, correction.rollout_is_threshold, correction.rollout_rs
    require(level in ("token", None), f"{CORRECTION}.rollout_is={level} must be token, or null for none")
    require(
        level is None or _is_threshold(threshold),
        f"{CORRECTION}.rollout_is_threshold={threshold} must be a positive number, or two with _ between: 0.5_2.0",
    )
    require(
        rejection is None or correction.rollout_rs_threshold is not None,
        f"{CORRECTION}.rollout_rs={rejection} needs {CORRECTION}.rollout_rs_threshold",
    )
    require(
        (level is None and rejection is None) or config.actor_rollout_ref.rollout.calculate_log_probs,
        f"the rollout correction needs {ROLLOUT}.calculate_log_probs=True",
    )


def check_run(config: DictConfig) -> None:
    wait, contents = config.run.wait_seconds, config.actor_rollout_ref.actor.checkpoint.load_contents
    require(
        isinstance(wait, int | float) and wait >= 0,
        f"run.wait_seconds={wait} must be a number of seconds, 0 or more: how long to wait for a cluster's nodes",
    )
    if config.trainer.val_only and not config.trainer.val_before_train:
        raise ValueError(
            "trainer.val_only=true with trainer.val_before_train=false would train: set trainer.val_before_train=true"
        )
    require(
        "model" in contents or config.trainer.resume_mode == "disable",
        f"actor_rollout_ref.actor.checkpoint.load_contents={contents} leaves the model out, and a run that is resumed would "
        "start again from its first weights: add model, or set trainer.resume_mode=disable",
    )


def _is_threshold(value: Any) -> bool:
    try:
        bounds = [float(bound) for bound in str(value).split("_")]
    except ValueError:
        return False
    return len(bounds) <= 2 and bounds == sorted(bounds) and 0 < bounds[0] and bounds[-1] < float("inf")


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a section, or of the one value that it is; nothing of what is absent."""
    if isinstance(node, DictConfig):
        for name in map(str, node):
            yield from _leaves(OmegaConf.select(node, name), f"{key}.{name}")
    elif node is not ABSENT:
        yield key, node


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
