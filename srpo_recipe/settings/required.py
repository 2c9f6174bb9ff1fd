"""Values that a run cannot do without and that nobody can guess.

A config file says `???` for them. Over a value of verl's that changes nothing, since OmegaConf merges a missing value into none,
and the run would train on verl's example data. So verl's own values of these keys count as missing here.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.kinds import ABSENT
from srpo_recipe.settings.refusals import MODEL
from srpo_recipe.verify.settings import require

REQUIRED = {
    "data.train_files": "give a parquet file in verl's format, or choose a task that brings its own, as task=sums",
    "data.val_files": "give a parquet file in verl's format, or choose a task that brings its own, as task=sums",
    f"{MODEL}.path": "give a folder in Hugging Face's format or a hub name, or choose a model, as model=tiny",
}
# Keys of ours alone, where `???` does bind.
FIXES = {"task.dir": "give the folder that scripts/prepare_data.sh has written (docs/data.md)"}
SECTIONS = ("srpo", "run", "method", "task", "data", "trainer", "algorithm", "actor_rollout_ref.actor", MODEL)


def check_gaps(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for a `???` that is left."""
    for key in _gaps(OmegaConf.to_container(config, resolve=False)):
        if any(key.startswith(f"{section}.") for section in SECTIONS):
            require(key in REQUIRED, f"{key} is missing: {FIXES.get(key, f'add {key}=VALUE')}")


def check(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for one of REQUIRED that was not given."""
    loader = OmegaConf.select(config, "data.custom_cls.path", default=None)
    for key, fix in REQUIRED.items():
        value = OmegaConf.select(config, key, default=ABSENT, throw_on_missing=False)
        if key.startswith("data.") and loader is not None:
            continue  # a loader of the user's finds its rows itself
        require(value not in (ABSENT, None, "", []), f"{key} is missing: {fix}")
        example = OmegaConf.select(verl_defaults(), key)
        require(value != example, f"{key} is missing ({example} is verl's example, not taken): {fix}")


def _gaps(node: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of the values that are `???`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _gaps(value, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key
