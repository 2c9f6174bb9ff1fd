"""The agent loops and tools that a run names, in files that are looked at here: verl reads them in the workers alone.

A loop is named by actor_rollout_ref.rollout.agent.default_agent_loop or, row by row, by the data's column agent_name. The file of
agent_loop_config_path stands in the place of agent_loops.yaml, so a name that it lacks would be verl's own loop, or none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import near, said
from srpo_recipe.settings.refusals import ROLLOUT
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.settings import require

SHIPPED = Path(__file__).parents[1] / "agent_loops.yaml"
COLUMN = "agent_name"
LOOPS, DEFAULT = f"{ROLLOUT}.agent.agent_loop_config_path", f"{ROLLOUT}.agent.default_agent_loop"
FUNCTIONS, CLASSES = (f"{ROLLOUT}.multi_turn.{name}" for name in ("function_tool_path", "tool_config_path"))
SINGLE_TURN, WITH_TOOLS = (
    f"srpo_recipe.training.agent_loop.{name}" for name in ("SeededSingleTurnAgentLoop", "SeededToolAgentLoop")
)
GIVE_TOOLS = f"give {FUNCTIONS}=FILE.py or {CLASSES}=FILE.yaml"


def check(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for a loop that no file names, files that are not there or hold no tools, and a tool
    agent without tools.
    """
    known, default = loops(config), OmegaConf.select(config, DEFAULT)
    hint = near(str(default), known)
    require(
        default in known,
        f"{said(DEFAULT, default)}: {_file(config)} has no loop of that name: set it to one of {', '.join(known)}{hint}, or add "
        "the loop to the file (a file of your own needs the entries of srpo_recipe/agent_loops.yaml that you go on using)",
    )
    _check_functions(OmegaConf.select(config, FUNCTIONS))
    _check_classes(OmegaConf.select(config, CLASSES))
    require(
        known[default] != WITH_TOOLS or has_tools(config),
        f"{said(DEFAULT, default)} has no tools to call: {GIVE_TOOLS}, or set it to seeded_single_turn",
    )


def loops(config: DictConfig) -> dict[str, str]:
    """Name -> class of the agent loops of a run. Raises ValueError for a file that is none of agent loops."""
    file = _file(config)
    found = _read(LOOPS, str(file))
    named = isinstance(found, list) and all(
        isinstance(entry, Mapping) and all(isinstance(entry.get(key), str) for key in ("name", "_target_"))
        for entry in found
    )
    if not named or not found:
        raise ValueError(f"{LOOPS}={file}: it must hold a list of entries with name and _target_ (docs/agents.md)")
    return {entry["name"]: entry["_target_"] for entry in found}


def has_tools(config: DictConfig) -> bool:
    """Whether a run names a file of tools."""
    return bool(OmegaConf.select(config, FUNCTIONS) or OmegaConf.select(config, CLASSES))


def check_row(row: Mapping[str, Any], known: Mapping[str, str], tools: bool) -> None:
    """Raise ValueError where a row's column agent_name names no loop, or the tool agent in a run without tools."""
    if COLUMN not in row:
        return
    name = row[COLUMN]
    if name not in known:
        raise ValueError(f"{COLUMN} must be one of {', '.join(known)}, the loops of {LOOPS}, not {name!r}")
    if known[name] == WITH_TOOLS and not tools:
        raise ValueError(f"{COLUMN} is {name}, and the run has no tools: {GIVE_TOOLS}")


def check_used(config: DictConfig) -> None:
    """Raise ValueError for tools that no rollout can call. Asked where the rows leave every one of them to the default loop."""
    default = OmegaConf.select(config, DEFAULT)
    given = [said(key, path) for key in (FUNCTIONS, CLASSES) if (path := OmegaConf.select(config, key))]
    require(
        not given or loops(config).get(default) != SINGLE_TURN,
        f"{' '.join(given)} has no effect: {DEFAULT}={default} calls no tools, and the data has no column {COLUMN}: "
        f"set {DEFAULT}=seeded_tool_agent, or leave the tools out",
    )


def _file(config: DictConfig) -> Path:
    return Path(OmegaConf.select(config, LOOPS) or SHIPPED)


def _read(key: str, path: str) -> Any:
    """What a YAML file holds."""
    require(Path(path).is_file(), f"{key}={path} is not there: correct the path, or set it to null")
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # of yaml, of omegaconf, of the file system
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{key}={path} cannot be read as YAML ({reason}): correct the file") from None


def _check_functions(path: Any) -> None:
    """verl's own reading of the file, which keeps what it has read."""
    if not path:
        return
    require(
        isinstance(path, str) and Path(path).is_file(),
        f"{said(FUNCTIONS, path)} is not there: correct the path, or set it to null",
    )
    try:
        found = function_at("verl.tools.function_tool:load_function_tools_from_path")(path)
    except (Exception, SystemExit) as error:  # of the user's code
        raise ValueError(
            f"{FUNCTIONS}={path} cannot be loaded ({type(error).__name__}: {error}): correct the file"
        ) from error
    require(bool(found), f"{FUNCTIONS}={path} holds no tool: put verl's @function_tool above a function in it")


def _check_classes(path: Any) -> None:
    """The file and its classes, none of which is made: one may start what belongs into a worker."""
    if not path:
        return
    found = _read(CLASSES, str(path))
    tools = found.get("tools") if isinstance(found, dict) else None
    require(isinstance(tools, list) and bool(tools), f"{CLASSES}={path}: it must hold a list tools, as verl's own do")
    for tool in tools or ():
        name = tool.get("class_name") if isinstance(tool, dict) else None
        kind = tool["config"].get("type") if name and isinstance(tool.get("config"), dict) else None
        require(
            isinstance(name, str) and "." in name and kind == "native",
            f"{CLASSES}={path}: each of its tools needs class_name=package.module.Class and config.type=native",
        )
        try:
            function_at(":".join(str(name).rsplit(".", 1)))
        except ValueError as error:
            raise ValueError(f"{CLASSES}={path}: class_name={name}: {error}; correct the file") from None
