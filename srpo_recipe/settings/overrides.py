"""What is wrong with an override of the command line, and how to write it: Hydra's own messages name neither key nor quotes."""

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import near

QUOTES = "Hydra reads quotes of its own inside those of the shell"


def explain(overrides: Sequence[str]) -> str | None:
    """The first override that Hydra cannot take, why, and the fix; None where all of them are well written and known.

    Reads the arguments alone and composes nothing but the config without them.
    """
    return unreadable(overrides) or _unknown(overrides)


def unreadable(overrides: Sequence[str]) -> str | None:
    """The first override that is not written as Hydra wants it, and how it would be; None where there is none."""
    for override in overrides:
        if _reads(override):
            continue
        key, equals, value = override.partition("=")
        if not equals:
            return f"{override} is no override: write KEY=VALUE{_neighbour(override, overrides)}"
        quoted = value.replace('"', '\\"')
        better = f'{key}="{quoted}"'
        if _reads(better) and (value[:1] not in "[{'\"" or value.startswith("{prompt}")):
            return f"{override} cannot be read: write {shlex.quote(better)} ({QUOTES})"
        return (
            f"{override} cannot be read: single quotes go round an argument with spaces, as '{key}=[a, b]', and double ones "
            f"inside them round a text with brackets, braces or =, as '{key}=\"...\"'"
        )
    return None


def _neighbour(word: str, overrides: Sequence[str]) -> str:
    """The argument before a stray word, where the shell has cut it off there."""
    place = list(overrides).index(word)
    before = overrides[place - 1] if place else ""
    return f", or quote it with what stands before it: {shlex.quote(f'{before} {word}')}" if "=" in before else ""


def _reads(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except HydraException:
        return False
    return True


def _unknown(overrides: Sequence[str]) -> str | None:
    """The first choice or key that there is not."""
    choices, chosen, others = _choices(), [], []
    for override in overrides:
        name, _, value = override.partition("=")
        key = name.lstrip("+~").partition("@")[0]
        if key not in choices:
            others.append((override, name, key))
        elif value in choices[key]:
            chosen.append(f"{key}={value}")
        elif value and "," not in value:
            return f"there is no {key}={value}{near(value, choices[key])} (there are {', '.join(choices[key])})"
    keys = _keys(chosen)
    for override, name, key in others:
        if re.match(r"srpo\.\w+_options\b", key):
            if fault := _options(override, key):
                return fault
            continue
        if key not in keys and not name.startswith("+") and not key.startswith("hydra") and "/" not in key:
            return f"there is no {key}{near(key, keys | set(choices))}"
        if key in keys and name.startswith("+") and not name.startswith("++"):
            return f"{override}: there is a {key} already, and + is for what is new: leave the + out"
    return None


def _options(override: str, key: str) -> str | None:
    """What is wrong with the numbers of an option (method/options.py): a mapping of names that the schema does not list."""
    value = OverridesParser.create().parse_overrides([override])[0].value()
    numbers = value if isinstance(value, dict) else {"": value}
    section = "srpo." + key.split(".")[1]
    for name, number in numbers.items():
        one = ".".join([key, str(name)]) if name else key
        if one == section:
            return f"{override}: {section} wants names and numbers: write '+{section}={{NAME: NUMBER}}'"
        if isinstance(number, bool) or not isinstance(number, int | float):
            return f"{one}={number}: set it to a number"
    return None if override.startswith("+") else f"{override}: write {shlex.quote('+' + override)}"


def _choices() -> dict[str, list[str]]:
    """The files of each group of config/."""
    root = files("srpo_recipe_config")
    return {
        group.name: sorted(file.name.removesuffix(".yaml") for file in group.iterdir() if file.name.endswith(".yaml"))
        for group in root.iterdir()
        if group.is_dir() and not group.name.startswith("_")
    }


def _keys(chosen: Sequence[str]) -> set[str]:
    """Every dotted key of the config with these choices, sections too."""
    with initialize_config_module("srpo_recipe_config", version_base=None):
        names = _names(compose("srpo", overrides=list(chosen)), "")
        return {name for name in names if not name.startswith("critic.")}  # which nothing reads


def _names(node: DictConfig, prefix: str) -> Iterator[str]:
    for name in map(str, node):
        yield f"{prefix}{name}"
        inner = node._get_node(name)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            section = OmegaConf.select(node, name) if inner._is_interpolation() else inner
            if isinstance(section, DictConfig):
                yield from _names(section, f"{prefix}{name}.")
