"""Typed settings from a composed config, and what follows from them together with verl's own."""

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import near
from srpo_recipe.settings.refusals import CORRECTION, SECTIONS
from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig
from srpo_recipe.verify.settings import ShapingConfig, VerifierConfig, require


def read(config: DictConfig) -> SRPOConfig:
    """Typed settings from the composed config. Raises ValueError with the fix for a value out of range."""
    for section, schema in (
        (config.srpo, SRPOConfig),
        (config.srpo.teacher, TeacherConfig),
        (config.srpo.verifier, VerifierConfig),
        (config.srpo.verifier.shaping, ShapingConfig),
    ):
        unknown = sorted(set(section) - {known.name for known in fields(schema)})
        names = [known.name for known in fields(schema)]
        hint = near(unknown[0], names) if unknown else ""
        require(
            not unknown, f"unknown srpo settings: {', '.join(unknown)}; known are the fields of {schema.__name__}{hint}"
        )
    settings = OmegaConf.to_object(config.srpo)
    assert isinstance(settings, SRPOConfig), "compose the config with the schema srpo/schema in its defaults list"
    return settings


def from_plain(section: Any) -> SRPOConfig:
    """The same from a copy that lost its type on the way to a worker."""
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SRPOConfig), section))
    assert isinstance(settings, SRPOConfig)
    return settings


def section_of(config: DictConfig, key: str) -> DictConfig:
    """A section of refusals.SECTIONS. Raises ValueError, with the fix, where it is null or missing."""
    found, instead = OmegaConf.select(config, key), SECTIONS[key]
    fix = "leave it as in verl's config" + (f", and set {instead} if that is what you mean" if instead else "")
    require(isinstance(found, DictConfig), f"{key} is null or missing, and its settings are read: {fix}")
    return found


def old_policy(config: DictConfig) -> str:
    """Where the old policy's log-probs come from: "update" (the update's own forward pass) or "pass" (one before it).

    Raises ValueError, with the fix, for a config without algorithm.rollout_correction.
    """
    section_of(config, CORRECTION)
    if config.srpo.old_policy != "auto":
        return config.srpo.old_policy
    return "update" if needs_pass(config) is None else "pass"


def needs_pass(config: DictConfig) -> tuple[str, Any, Any] | None:
    """The first setting that needs the old policy before the update: its key, its value, the value that would not need it."""
    actor, correction = config.actor_rollout_ref.actor, section_of(config, CORRECTION)
    needs: tuple[tuple[str, Any, Any], ...] = (
        # a second optimiser step starts from another policy than the one that sampled
        ("actor_rollout_ref.actor.ppo_mini_batch_size", actor.ppo_mini_batch_size, config.data.train_batch_size),
        ("actor_rollout_ref.actor.ppo_epochs", actor.ppo_epochs, 1),
        # its mean runs over the whole batch, and an update sees one micro-batch at a time
        ("algorithm.rollout_correction.rollout_is_batch_normalize", correction.rollout_is_batch_normalize, False),
    )
    return next((need for need in needs if need[1] != need[2]), None)
