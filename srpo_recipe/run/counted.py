"""Which settings of a run count: those that change its numbers. A folder of checkpoints and metrics belongs to them.

neutral.py is the table of those that do not count; everything else does, also what a later version adds. What lies in files
counts by what the files hold.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.records.files import sha256
from srpo_recipe.run.neutral import FILES, MODELS, NEUTRAL, RISING
from srpo_recipe.settings.wire import as_given

PACKAGE = Path(__file__).parents[1]
ABSENT = "(absent)"

_NEUTRAL_KEYS = {f"{section}.{name}".lstrip(".") for section, names in NEUTRAL.items() for name in names.split()}


def counted(config: DictConfig, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted key -> value of every setting that counts, as JSON can hold it.

    Of a file: {"place", "bytes", "changed", "sha256"}; of several a list; of a model's folder {"place", "sha256"}. known: what
    an earlier call gave: a file of the same place, size and time is not read again.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    plain["reward"]["custom_reward_function"] = as_given(cast("dict[str, Any]", plain))
    found = dict(_leaves(cast("dict[str, Any]", plain)))
    if config.srpo.verifier.name is not None:  # its reward function's arguments are written from srpo.verifier
        found = {key: value for key, value in found.items() if "custom_reward_function.reward_kwargs" not in key}
    for key in FILES:
        if found.get(key):
            found[key] = _files(found[key], (known or {}).get(key))
    for key in MODELS:
        if found.get(key):
            found[key] = _model(found[key])
    found["ranks"] = config.trainer.nnodes * config.trainer.n_gpus_per_node
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, old value, new value) of the settings that differ, by key. What is not known of a file does not differ."""
    steady = now.get("actor_rollout_ref.actor.optim.lr_scheduler_type") == "constant" and not now.get(
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio"
    )
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if key in RISING and steady and _rises(old, new):
            continue
        if not _same(old, new):
            found.append((key, shown(old), shown(new)))
    return found


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in _NEUTRAL_KEYS:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, _portable(value)


def _portable(value: Any) -> Any:
    """Paths below the package without the place of the package."""
    if isinstance(value, list):
        return [_portable(one) for one in value]
    inside = isinstance(value, str) and value.startswith(f"{PACKAGE}/")
    return f"package:{value[len(str(PACKAGE)) + 1 :]}" if inside else value


def _place(path: Path) -> str:
    """A path as it is in this checkout: relative to the package or the working directory where it is below them."""
    path = path.absolute()
    if path.is_relative_to(PACKAGE):
        return f"package:{path.relative_to(PACKAGE)}"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _path(value: str) -> Path:
    return PACKAGE / value.removeprefix("package:") if value.startswith("package:") else Path(value)


def _files(value: Any, known: Any) -> Any:
    if isinstance(value, list):
        before = known if isinstance(known, list) and len(known) == len(value) else [None] * len(value)
        return [_files(*pair) for pair in zip(value, before, strict=True)]
    name, colon, function = (
        str(value).rpartition(":") if str(value).rpartition(":")[0].endswith(".py") else (value, "", "")
    )
    path = _path(str(name))
    if "://" in str(name) or not path.is_file():
        return value
    status = path.stat()
    found = {"place": _place(path) + colon + function, "bytes": status.st_size, "changed": status.st_mtime_ns}
    if isinstance(known, dict) and {**found, "sha256": known.get("sha256")} == known:
        return known
    return {**found, "sha256": sha256(path)}


def _model(value: str) -> dict[str, Any]:
    folder = _path(value)
    if folder.is_dir():
        config = folder / "config.json"
        return {"place": _place(folder), "sha256": sha256(config) if config.is_file() else None}
    return {"place": value, "sha256": _hub_config(value)}


def _hub_config(name: str) -> str | None:
    """Of a model of a hub, whose config is known once it was fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path that is not there
        return None
    return sha256(Path(path)) if isinstance(path, str) else None


def _rises(old: Any, new: Any) -> bool:
    return old == new or (isinstance(old, int) and isinstance(new, int) and new > old)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, dict) and isinstance(new, dict) and "place" in old and "place" in new:
        known = old.get("sha256") and new.get("sha256")
        if "bytes" in old and "bytes" in new:  # a file: its name does not count, but for the function after the colon
            return bool(known) and old["sha256"] == new["sha256"] and _function(old) == _function(new)
        return old["place"] == new["place"] and (not known or old["sha256"] == new["sha256"])
    if isinstance(old, str) != isinstance(new, str) and isinstance(old, dict | str) and isinstance(new, dict | str):
        # a file that is there at one of the two times alone
        one, other = sorted((old, new), key=lambda value: isinstance(value, str))
        return isinstance(one, dict) and one.get("place") in (other, _place(_path(str(other))))
    return old == new


def _function(entry: Mapping[str, Any]) -> str:
    place, colon, function = entry["place"].rpartition(".py:")
    return function if colon else ""


def shown(value: Any) -> str:
    """A value of `counted` for a reader."""
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, dict) and "place" in value:
        return value["place"] + (f" (sha256 {value['sha256'][:12]})" if value.get("sha256") else "")
    return "null" if value is None else str(value)
