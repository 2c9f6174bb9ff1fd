"""Agent loops and tools that a run names: what its files do not hold is refused with key and fix before anything starts."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from srpo_recipe.data import usable
from srpo_recipe.doctor.examine import compose_case
from srpo_recipe.run import dry_run
from srpo_recipe.run.prepare import check_files, prepare
from srpo_recipe.settings import agents
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.refusals import ROLLOUT
from srpo_recipe.settings.rules import check

TOOLS = Path(__file__).parents[1] / "examples" / "calculator" / "tools.py"
DEFAULT, LOOPS, FUNCTIONS, CLASSES = agents.DEFAULT, agents.LOOPS, agents.FUNCTIONS, agents.CLASSES
OWN = "- name: mine\n  _target_: package.module.Mine\n"
NATIVE = "tools:\n- class_name: {}\n  config:\n    type: {}\n"

# overrides, FILE standing for a file with these contents -> what the message says; each passed, and ended or did nothing later
REFUSED = {
    "a loop without a name": (f"{DEFAULT}=nonsense", None, f"{DEFAULT}=nonsense: ", "set it to one of seeded_single_turn"),
    "no loop": (f"{DEFAULT}=null", None, f"{DEFAULT}=null: ", "set it to one of seeded_single_turn"),
    "a slip of the pen": (f"{DEFAULT}=seeded_tools_agent", None, "did you mean seeded_tool_agent?"),
    "an agent without tools": (f"{DEFAULT}=seeded_tool_agent", None, "has no tools to call: give ", FUNCTIONS),
    "verl's name of it": (f"{DEFAULT}=tool_agent", None, "has no tools to call"),
    "no file of loops": (f"{LOOPS}=/tmp/nope.yaml", None, f"{LOOPS}=/tmp/nope.yaml is not there: correct the path"),
    "loops without the default": (f"{LOOPS}=FILE", OWN, f"{DEFAULT}=seeded_single_turn: ", "one of mine", "add the loop"),
    "no list of loops": (f"{LOOPS}=FILE", "mine: x\n", "must hold a list of entries with name and _target_"),
    "an empty list of loops": (f"{LOOPS}=FILE", "[]\n", "must hold a list of entries with name and _target_"),
    "loops without a class": (f"{LOOPS}=FILE", "- name: mine\n", "must hold a list of entries with name and _target_"),
    "loops that are no YAML": (f"{LOOPS}=FILE", "- [\n", "cannot be read as YAML"),
    "no file of functions": (f"{FUNCTIONS}=/tmp/nope.py", None, f"{FUNCTIONS}=/tmp/nope.py is not there: correct the path"),
    "functions that are no tools": (f"{FUNCTIONS}=FILE", "def f():\n    pass\n", "holds no tool", "@function_tool"),
    "functions that fail": (f"{FUNCTIONS}=FILE", "import nope_nope\n", "cannot be loaded (ModuleNotFoundError"),
    "no file of classes": (f"{CLASSES}=/tmp/nope.yaml", None, f"{CLASSES}=/tmp/nope.yaml is not there: correct the path"),
    "no tools": (f"{CLASSES}=FILE", "tools: []\n", "must hold a list tools"),
    "a tool without a class": (f"{CLASSES}=FILE", "tools: [{}]\n", "needs class_name=package.module.Class"),
    "another kind": (f"{CLASSES}=FILE", NATIVE.format("verl.tools.base_tool.BaseTool", "mcp"), "config.type=native"),
    "no such class": (f"{CLASSES}=FILE", NATIVE.format("nope.Nope", "native"), "class_name=nope.Nope: the module 'nope'"),
}  # fmt: skip


def composed(tmp_path: Path, override: str, contents: str | None) -> list[str]:
    file = tmp_path / ("file.py" if override.startswith(FUNCTIONS) else "file.yaml")
    if contents is not None:
        file.write_text(contents)
    return ["hardware=cpu", f"run.root={tmp_path}", override.replace("FILE", str(file))]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_refused_before_anything_starts(tmp_path, case):
    override, contents, *says = REFUSED[case]
    given = composed(tmp_path, override, contents)
    config = compose_config(given)
    check(config)
    with pytest.raises(ValueError) as error:
        check_files(config)
    assert override.partition("=")[0] in str(error.value) or DEFAULT in str(error.value)
    assert all(text in str(error.value) for text in says), error.value
    with pytest.raises(SystemExit, match="Configuration error: "):
        dry_run.main(given)
    assert says[0] in compose_case(given, []).error


@pytest.mark.parametrize("name", ["seeded_tool_agent", "tool_agent"])
def test_an_agent_with_tools_passes(name):
    check_files(compose_config(["hardware=cpu", f"{DEFAULT}={name}", f"{FUNCTIONS}={TOOLS}"]))


def test_tools_by_class_pass(tmp_path):
    given = composed(tmp_path, f"{CLASSES}=FILE", NATIVE.format("verl.tools.base_tool.BaseTool", "native"))
    check_files(compose_config([*given, f"{DEFAULT}=seeded_tool_agent"]))


def test_a_file_of_loops_passes_with_its_own_default(tmp_path):
    check_files(compose_config([*composed(tmp_path, f"{LOOPS}=FILE", OWN), f"{DEFAULT}=mine"]))


def test_the_shipped_loops_are_classes():
    import importlib

    for target in agents.loops(compose_config(["hardware=cpu"])).values():
        module, _, name = target.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    assert {agents.SINGLE_TURN, agents.WITH_TOOLS} == set(agents.loops(compose_config(["hardware=cpu"])).values())


# ------------------------------------------------------------------------------------------------------------ with the rows


def with_rows(folder: Path, column: list | None, *overrides: str):
    """A run of four rows, whose column agent_name holds these."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": "mine",
            "prompt": [{"role": "user", "content": f"{n}+0=?"}],
            "reward_model": {"style": "rule", "ground_truth": str(n)},
            "extra_info": {"index": n},
            **({} if column is None else {"agent_name": column[n]}),
        }
        for n in range(4)
    ]
    file = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    given = [f"data.train_files={file}", f"data.val_files={file}", f"run.root={folder}", "srpo.verifier.name=math"]
    return compose_config(["hardware=cpu", "task=parquet", *given, *overrides])


def test_tools_that_no_rollout_can_call_are_refused(tmp_path):
    config = with_rows(tmp_path, None, f"{FUNCTIONS}={TOOLS}")
    check(config)
    with pytest.raises(ValueError, match=f"{FUNCTIONS}=.* has no effect: .*set {DEFAULT}=seeded_tool_agent"):
        prepare(config)


@pytest.mark.parametrize(
    "column, overrides",
    [
        (None, [f"{FUNCTIONS}={TOOLS}", f"{DEFAULT}=seeded_tool_agent"]),
        (["tool_agent"] * 4, [f"{FUNCTIONS}={TOOLS}"]),
        (["single_turn_agent", "seeded_tool_agent"] * 2, [f"{FUNCTIONS}={TOOLS}"]),
        (["single_turn_agent"] * 4, []),
        (None, []),
    ],
)
def test_the_rows_may_choose(tmp_path, column, overrides):
    usable.look(with_rows(tmp_path, column, *overrides))


@pytest.mark.parametrize(
    "column, says",
    [
        (["single_turn_agent", "nope", "nope", "nope"], "row 1: agent_name must be one of seeded_single_turn"),
        (["single_turn_agent", None, "tool_agent", None], "row 1: agent_name must be one of .*not None"),
        (
            ["single_turn_agent", "tool_agent"] * 2,
            f"row 1: agent_name is tool_agent, and the run has no tools: give {FUNCTIONS}",
        ),
    ],
)
def test_a_row_names_a_loop_that_there_is(tmp_path, column, says):
    with pytest.raises(ValueError, match=says):
        prepare(with_rows(tmp_path, column))


def test_verl_reads_the_same_two_keys():
    rollout = compose_config(["hardware=cpu"]).actor_rollout_ref.rollout
    assert {key.removeprefix(f"{ROLLOUT}.multi_turn.") for key in (FUNCTIONS, CLASSES)} <= set(rollout.multi_turn)
    assert OmegaConf.select(rollout, "agent.agent_loop_config_path") is None
