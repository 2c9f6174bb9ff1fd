"""The config of a run from its command-line overrides, without starting anything; training composes the same through Hydra."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """What `python -m srpo_recipe.main OVERRIDES` would run with, unresolved.

    Raises ValueError for an argument that cannot be read and for an unknown key or choice, with the fix, and with Hydra's
    reason for a wrong type.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    import srpo_recipe.settings.lora  # noqa: F401  (registers what srpo.yaml computes)
    import srpo_recipe.settings.schema  # noqa: F401  (registers the schema of the section srpo)
    from srpo_recipe.settings.overrides import explain
    from srpo_recipe.settings.run import overridden

    try:
        with initialize_config_module("srpo_recipe_config", version_base=None):
            config = compose("srpo", overrides=list(overrides))
            config.run.overridden = overridden(overrides)
            return config
    except HydraException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(explain(overrides) or f"{error}{cause}") from error


@cache
def verl_defaults() -> DictConfig:
    """verl's own config, composed. verl ships it as a file: Hydra composes once in a process, and in a run that is ours."""
    spec = find_spec("verl")
    assert spec is not None and spec.origin is not None, "verl is not installed"
    config = OmegaConf.load(Path(spec.origin).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml")
    assert isinstance(config, DictConfig)
    return config
