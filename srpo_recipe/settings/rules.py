"""Refuses settings that verl would run, but not as the method says: what `check` lets through runs as it reads."""

import math
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from srpo_recipe.settings import lora, options, parallel, places, ranges, required, unused, update
from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.kinds import ABSENT, is_count, is_number, leaves, said, shown
from srpo_recipe.settings.read import needs_pass, read, section_of
from srpo_recipe.settings.refusals import (
    ACTOR,
    CORRECTION,
    REFUSALS,
    ROLLOUT,
    SECTIONS,
    TEACHER_REFUSALS,
    UNREAD,
    UNREAD_IN_SYNC,
    Key,
    Refusal,
)
from srpo_recipe.settings.run import check as check_resume
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.settings.wire import check as check_verifier
from srpo_recipe.verify.settings import require


def check(config: DictConfig) -> SRPOConfig:
    """The typed settings. Raises ValueError, with key and fix, for what the method cannot do, or would not do as written."""
    try:
        return _check(config)
    except InterpolationResolutionError as error:  # a resolver of ours refused a value; OmegaConf writes around it
        said = str(error).removeprefix("ValueError raised while resolving interpolation: ")
        raise ValueError(said.partition("\n    full_key")[0]) from error


def _check(config: DictConfig) -> SRPOConfig:
    required.check_gaps(config)
    for key in SECTIONS:
        section_of(config, key)
    required.check(config)
    check_table(config, REFUSALS)
    ranges.check(config)
    settings = read(config)
    if settings.needs_teacher:
        check_table(config, lora.TEACHER if config.actor_rollout_ref.model.lora_rank else TEACHER_REFUSALS)
        lora.check_second_model(config)
    if config.actor_rollout_ref.model.lora_rank:
        check_table(config, lora.REFUSALS)
    lora.check(config)
    parallel.check(config)
    check_unread(config, UNREAD | lora.unread(config))
    if config.trainer.v1.trainer_mode == "srpo":
        check_unread(config, UNREAD_IN_SYNC)
    places.check(config)
    unused.check(config, settings)
    options.check(settings)
    check_verifier(config, settings.verifier)
    check_batch(config)
    update.check(config)
    check_temperature(config)
    check_prefill(config)
    check_old_policy(config)
    check_correction(config)
    options.check_asked(config, settings)
    check_run(config)
    check_resume(config)
    ranges.check_types(config)
    ranges.check_finite(config)
    return settings


def check_table(config: DictConfig, rows: Iterable[Refusal]) -> None:
    for key, values, why, may_be_absent in rows:
        value = OmegaConf.select(config, key, default=ABSENT)
        wanted = [OmegaConf.select(config, one) if isinstance(one, Key) else one for one in values]
        found = said(key, value) + ("" if value is ABSENT else " is not supported")
        require(
            value in wanted or (value is ABSENT and may_be_absent),
            f"{found}: set it to {shown(wanted[0])} ({why})",
        )


def check_unread(config: DictConfig, keys: dict[str, str]) -> None:
    """Only verl's own value of what nothing reads."""
    for section, instead in keys.items():
        default = dict(leaves(OmegaConf.select(verl_defaults(), section, default=ABSENT), section))
        for key, value in leaves(OmegaConf.select(config, section, default=ABSENT), section):
            fix = f"leave it at {shown(default[key])}" if key in default else "leave it out"
            fix += f", and set {instead} if that is what you mean" if instead else ""
            require(value == default.get(key, ABSENT), f"{key}={shown(value)} has no effect here: {fix}")


def check_batch(config: DictConfig) -> None:
    prompts, rollouts = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size
    require(rollouts > 1, f"{ROLLOUT}.n={rollouts}: a group needs at least 2 rollouts to have siblings")
    require(
        prompts % mini_batch == 0,
        f"data.train_batch_size={prompts} must be a multiple of "
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch}",
    )


def check_temperature(config: DictConfig) -> None:
    key = f"{ROLLOUT}.temperature"
    value = OmegaConf.select(config, key, default=ABSENT)
    require(
        is_number(value) and 0 < value < math.inf,
        f"{said(key, value)}: set it to a positive number, by which the logits are divided",
    )
    validation = config.actor_rollout_ref.rollout.val_kwargs
    if validation.n > 1 and (not validation.do_sample or validation.temperature == 0):
        raise ValueError(
            f"{ROLLOUT}.val_kwargs.n={validation.n} greedy answers to a question are one and the same: set it to 1, or sample "
            "with do_sample=true and a temperature"
        )


def check_prefill(config: DictConfig) -> None:
    """vLLM takes back what a seeded request drew for a part of its prompt; a generator on the CPU cannot go back."""
    engine = OmegaConf.select(config, f"{ROLLOUT}.engine_kwargs.vllm", default=None) or {}
    own = {f"{ROLLOUT}.enable_chunked_prefill": config.actor_rollout_ref.rollout.enable_chunked_prefill}
    given = {f"{ROLLOUT}.engine_kwargs.vllm.{name}": value for name, value in engine.items()}
    for key, value in (own | given).items():
        if config.trainer.device == "cpu" and key.replace("-", "_").endswith("enable_chunked_prefill") and value:
            raise ValueError(
                f"{key}={value}: on a CPU vLLM cannot seed a prompt that it reads in parts: set it to false"
            )


def check_old_policy(config: DictConfig) -> None:
    need = needs_pass(config)
    if config.srpo.old_policy == "update" and need is not None:
        key, value, other = need
        raise ValueError(
            f"srpo.old_policy=update, but {key}={shown(value)} needs the old policy before the update: set it to "
            f"{shown(other)}, or srpo.old_policy=auto"
        )


def check_correction(config: DictConfig) -> None:
    """verl's rollout correction, whose own errors come in the first step."""
    correction = config.algorithm.rollout_correction
    level, threshold = (
        OmegaConf.select(correction, name, default=ABSENT) for name in ("rollout_is", "rollout_is_threshold")
    )
    require(level in ("token", None), f"{said(f'{CORRECTION}.rollout_is', level)}: set it to token, or null for none")
    require(
        level is None or _is_threshold(threshold),
        f"{said(f'{CORRECTION}.rollout_is_threshold', threshold)}: set it to a positive number, or to two with _ between: "
        "0.5_2.0",
    )
    require(
        level is None or config.actor_rollout_ref.rollout.calculate_log_probs,
        f"the rollout correction needs {ROLLOUT}.calculate_log_probs=True",
    )


def check_run(config: DictConfig) -> None:
    wait = config.run.wait_seconds
    require(
        isinstance(wait, int | float) and wait >= 0,
        f"run.wait_seconds={wait} must be a number of seconds, 0 or more: how long to wait for a cluster's nodes",
    )
    samples = config.run.samples
    require(
        samples == 0 and not isinstance(samples, bool) or is_count(samples),
        f"run.samples={shown(samples)}: set it to a whole number of groups a step, or to 0 for no samples",
    )
    if config.trainer.val_only and not config.trainer.val_before_train:
        raise ValueError(
            "trainer.val_only=true with trainer.val_before_train=false would train: set trainer.val_before_train=true"
        )
    for name in ("save_contents", "load_contents"):
        contents = config.actor_rollout_ref.actor.checkpoint[name]
        missing = [part for part in ("model", "optimizer", "extra") if part not in contents]
        require(
            not missing or config.trainer.resume_mode == "disable",
            f"{ACTOR}.checkpoint.{name}={shown(contents)} leaves out what a run is resumed with, which would not be the one that "
            f"was stopped: add {', '.join(missing)}, or set trainer.resume_mode=disable",
        )


def _is_threshold(value: Any) -> bool:
    try:
        bounds = [float(bound) for bound in str(value).split("_")]
    except ValueError:
        return False
    return len(bounds) <= 2 and bounds == sorted(bounds) and 0 < bounds[0] and bounds[-1] < float("inf")
