"""Configs that the tests compose: each once, changed for a moment, and read as the files that they are made of."""

from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

import srpo_recipe.settings.schema  # noqa: F401  (registers the schema of the section srpo)

CONFIG = Path(__file__).parent.parent / "config"
GROUPS = {
    group: sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))
    for group in ("method", "task", "model", "hardware")
}
# These are task=parquet with a folder and a verifier, so one combination each is enough.
BENCHMARKS = [task for task in GROUPS["task"] if task not in ("gym", "parquet", "picks", "sums")]
FILLED = {
    **{f"task={task}": ["task.dir=some/folder"] for task in BENCHMARKS},
    "task=parquet": ["data.train_files=train.parquet", "data.val_files=test.parquet"],
    "model=path": ["actor_rollout_ref.model.path=some/model"],
}
BASE = ("srpo", "parquet", "tiny", "cpu")


@cache
def composed(method: str, task: str, model: str, hardware: str, *overrides: str):
    names = [f"method={method}", f"task={task}", f"model={model}", f"hardware={hardware}"]
    extra = [override for name in names for override in FILLED.get(name, [])]
    with initialize_config_module("srpo_recipe_config", version_base=None):
        return compose("srpo", overrides=[*names, *extra, *overrides])


@contextmanager
def changed(key: str, value, base=BASE):
    """A composed config with one value changed, put back afterwards (copying a config takes longer than checking it)."""
    node, name = composed(*base), key
    while "." in name:  # down to what the change replaces: the value, or an interpolation or a gap above it
        section = node._get_node(name.partition(".")[0], validate_access=False)
        if not isinstance(section, DictConfig) or section._is_interpolation():
            break
        node, name = section, name.partition(".")[2]
    first = name.partition(".")[0]
    absent = node._get_node(first, validate_access=False) is None
    before = None if absent else node._get_node(first)._value()
    with open_dict(composed(*base)):
        OmegaConf.update(node, name, value)
        try:
            yield composed(*base)
        finally:
            if absent:
                del node[first]
            else:
                OmegaConf.update(node, first, before)


@contextmanager
def without(key: str, base=BASE):
    """A composed config that lacks a key, put back afterwards; the whole of an interpolated section above it is taken away."""
    node, name = composed(*base), key
    while "." in name:
        section = node._get_node(name.partition(".")[0], validate_access=False)
        if not isinstance(section, DictConfig) or section._is_interpolation():
            break
        node, name = section, name.partition(".")[2]
    first = name.partition(".")[0]
    before = node._get_node(first, validate_access=False)
    with open_dict(composed(*base)):
        if before is not None:
            del node[first]
        try:
            yield composed(*base)
        finally:
            if before is not None:
                node[first] = before


def leaves(node: dict, prefix: str = ""):
    """(dotted key, raw value) of a config file."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def raw(path: Path) -> dict:
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    content.pop("defaults", None)
    return content
