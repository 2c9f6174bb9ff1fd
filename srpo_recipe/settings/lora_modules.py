"""Which layers of a model have an adapter: target_modules and exclude_modules, held to what the model has."""

from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from srpo_recipe.settings.kinds import shown
from srpo_recipe.settings.refusals import MODEL
from srpo_recipe.verify.settings import require

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output layer
TARGET, EXCLUDED = f"{MODEL}.target_modules", f"{MODEL}.exclude_modules"


class Layers(NamedTuple):
    """Whole names of a model's linear layers: those that adapters may be on, and the output layer."""

    inner: list[str]
    head: list[str]


def check(model: DictConfig) -> None:
    """Raise ValueError, with key and fix, where target_modules or exclude_modules is no list of names, nor what verl has for all
    and for none, and for the output layer.
    """
    target, excluded = (_plain(model[name]) for name in ("target_modules", "exclude_modules"))
    require(
        target != [ALL_LINEAR],
        f"{TARGET}=[{ALL_LINEAR}] is looked for as the name of a layer: write {ALL_LINEAR} without brackets",
    )
    require(
        target == ALL_LINEAR or _is_names(target),
        f"{TARGET}={_shown(target)}: set it to {ALL_LINEAR}, or to a list of layers' names{_as_list(target)}",
    )
    require(
        target == ALL_LINEAR or not {"lm_head", "embed_out"} & {name.rpartition(".")[2] for name in target},
        f"{TARGET}={_shown(target)}: leave the output layer out, of which the self-teacher keeps one copy",
    )
    require(
        excluded is None or _is_names(excluded),
        f"{EXCLUDED}={_shown(excluded)}: set it to null for none, or to a list of layers' names" + _as_list(excluded),
    )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name.strip() for name in value)


def _as_list(value: Any) -> str:
    """How a text is written as a list: peft would match one against the whole of every layer's name."""
    if not isinstance(value, str) or not value or value.lower() == ALL_LINEAR:
        return ""
    if value.replace("_", "").replace(".", "").isalnum():
        return f"; write [{value}]"
    return "; patterns are not taken: write the names, as [q_proj,v_proj]"


def _shown(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else "''" if value == "" else shown(value)


def named(config: DictConfig) -> dict[str, list[str]]:
    """The names that target_modules and exclude_modules list, by key; all-linear is none."""
    model = config.actor_rollout_ref.model
    given = {TARGET: _plain(model.target_modules), EXCLUDED: _plain(model.exclude_modules)} if model.lora_rank else {}
    return {key: names for key, names in given.items() if isinstance(names, list)}


def in_words(model: DictConfig) -> str:
    """The modules of a run with LoRA, as the table of a run shows them."""
    target, excluded = _plain(model.target_modules), _plain(model.exclude_modules)
    without = f" without {', '.join(excluded)}" if excluded else ""
    return ("all linear layers" if target == ALL_LINEAR else ", ".join(target)) + without


def check_against(modules: dict[str, list[str]], layers: Layers, path: str) -> None:
    """Raise ValueError, with key and fix, for names that `named` gave and that the model has no linear layer for."""
    target, excluded = modules.get(TARGET), modules.get(EXCLUDED)
    last = ", ".join(sorted({name.rpartition(".")[2] for name in layers.inner}))
    for key, names in modules.items():
        of_head = [] if names is target else layers.head
        for name in names:
            require(
                any(matches(name, layer) for layer in [*layers.inner, *of_head]),
                f"{key}={_shown(names)}: {path} has no linear layer {name} that an adapter could be on; it has {last}",
            )
    adapted = [layer for layer in layers.inner if target is None or any(matches(name, layer) for name in target)]
    require(
        any(not any(matches(name, layer) for name in excluded or ()) for layer in adapted),
        f"{EXCLUDED}={_shown(excluded)} leaves no layer for an adapter: take names out of it",
    )


def matches(name: str, layer: str) -> bool:
    """As peft matches a name in a list (tuners/tuners_utils.py, check_target_module_exists)."""
    return layer == name or layer.endswith(f".{name}")
