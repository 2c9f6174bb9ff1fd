"""Typed settings from a composed config."""

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig, _require
from srpo_recipe.verify.settings import ShapingConfig, VerifierConfig


def read(config: DictConfig) -> SRPOConfig:
    """Typed settings from the composed config. Raises ValueError with the mend for a value out of range."""
    for section, schema in (
        (config.srpo, SRPOConfig),
        (config.srpo.teacher, TeacherConfig),
        (config.srpo.verifier, VerifierConfig),
        (config.srpo.verifier.shaping, ShapingConfig),
    ):
        unknown = sorted(set(section) - {known.name for known in fields(schema)})
        _require(not unknown, f"unknown srpo settings: {', '.join(unknown)}; known are the fields of {schema.__name__}")
    settings = OmegaConf.to_object(config.srpo)
    assert isinstance(settings, SRPOConfig), "compose the config with the schema srpo/schema in its defaults list"
    return settings


def from_plain(section: Any) -> SRPOConfig:
    """The same from a copy that lost its type on the way to a worker."""
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SRPOConfig), section))
    assert isinstance(settings, SRPOConfig)
    return settings
