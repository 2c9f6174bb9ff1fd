"""Arguments that Hydra cannot take: what is wrong with them, and how to write them."""

import shlex
import subprocess
import sys

import pytest
from test_main import train

from srpo_recipe.settings.compose import compose_config

UNREADABLE = {
    "run.root=/tmp/données": """'run.root="/tmp/données"'""",
    "run.name=a=step=100": """'run.name="a=step=100"'""",
    "run.root=~/out": """'run.root="~/out"'""",
    "run.root=/tmp/(a)": """'run.root="/tmp/(a)"'""",
    "srpo.teacher.template={prompt} foo {demonstration}": """'srpo.teacher.template="{prompt} foo {demonstration}"'""",
    "run.root=/tmp/it's": shlex.quote('run.root="/tmp/it\'s"'),
    'run.root=a"b=c': shlex.quote('run.root="a\\"b=c"'),
    r"run.root=a\b=c": shlex.quote(r'run.root="a\b=c"'),
}


@pytest.mark.parametrize("override", UNREADABLE)
def test_an_argument_that_cannot_be_read_is_written_out_and_can_then_be_read(override):
    with pytest.raises(ValueError) as error:
        compose_config([override])
    better = UNREADABLE[override]
    assert str(error.value).startswith(f"{override} cannot be read: write {better} (Hydra reads quotes of its own")
    key, _, value = override.partition("=")
    (written,) = shlex.split(better)
    found = compose_config([written])
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["foo"], "foo is no override: write KEY=VALUE"),
        (["~/out"], "~/out is no override: write KEY=VALUE"),
        (
            ["run.name=a", "b"],
            "b is no override: write KEY=VALUE, or quote it with what stands before it: 'run.name=a b'",
        ),
        (
            ["trainer.logger=[console,", "wandb]"],
            "single quotes go round an argument with spaces, as 'trainer.logger=[a, b]'",
        ),
        (["srpo.betta=1"], "there is no srpo.betta; did you mean srpo.beta?"),
        (["~srpo.betta"], "there is no srpo.betta; did you mean srpo.beta?"),
        (["+srpo.beta=1"], "+srpo.beta=1: there is a srpo.beta already, and + is for what is new: leave the + out"),
        (
            ["srpo.weight=floored", "+srpo.weight_options={least: abc}"],
            "srpo.weight_options.least=abc: set it to a number",
        ),
        (["+srpo.weight_options.least=true"], "srpo.weight_options.least=True: set it to a number"),
        (["+srpo.target_options.share=null"], "srpo.target_options.share=None: set it to a number"),
        (["srpo.weight_options={least: 0.2}"], "write '+srpo.weight_options={least: 0.2}'"),
        (["srpo.weight_options.first=3"], "srpo.weight_options.first=3: write +srpo.weight_options.first=3"),
        (["+srpo.weight_options=3"], "wants names and numbers: write '+srpo.weight_options={NAME: NUMBER}'"),
        (["trainer.total_traning_steps=4"], "did you mean trainer.total_training_steps?"),
        (["actor_rollout_ref.actor.optm.lr=1"], "did you mean actor_rollout_ref.actor.optim.lr"),
        (["actor.optim.lr=1"], "there is no actor.optim.lr; did you mean actor_rollout_ref.actor.optim.lr?"),
        (["total_training_steps=4"], "trainer.total_training_steps"),
        (["mehtod=grpo"], "there is no mehtod; did you mean method?"),
        (["method=srop"], "there is no method=srop; did you mean srpo? (there are advantage_mix, grpo, sdpo"),
        (["task=own"], "there is no task=own (there are biology, chemistry"),
        (["zzz=1"], "there is no zzz"),
        # a key that only this task has is not the one that is wrong
        (["task=gym", "task.generate.dataset=gcd", "srpo.teacher.ema=1"], "there is no srpo.teacher.ema; did you mean"),
        (["srpo.seed=1e3"], "srpo.seed=1e3"),
    ],
)
def test_what_there_is_not_is_named_with_what_was_perhaps_meant(overrides, says):
    with pytest.raises(ValueError) as error:
        compose_config(overrides)
    assert says in str(error.value) and "full_key: hydra" not in str(error.value)


def test_a_key_that_is_forced_in_is_compared_too():
    from srpo_recipe.settings.rules import check

    with pytest.raises(ValueError, match="unknown srpo settings: betta; .*did you mean beta"):
        check(compose_config(["+srpo.betta=0"]))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "override, last",
    [
        ("srpo.betta=1", "Configuration error: there is no srpo.betta; did you mean srpo.beta?"),
        ("run.name=a=b", """Configuration error: run.name=a=b cannot be read: write 'run.name="a=b"' (Hydra"""),
    ],
)
def test_the_entry_point_says_so_last(tmp_path, override, last):
    result = train(tmp_path, override)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(last)
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.timeout(180)
def test_a_root_that_cannot_be_written_to_ends_the_command(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "out"):
        command = [sys.executable, "-m", "srpo_recipe.main", f"run.root={root}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=tmp_path)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith(f"Not started: nothing can be written to run.root={root} (")


def test_a_home_folder_is_meant(tmp_path, monkeypatch):
    from srpo_recipe.run.prepare import fill

    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_config(['run.root="~/out"', "run.name=one"])
    fill(config)
    assert config.run.dir == f"{tmp_path}/out/one"
    assert config.trainer.default_local_dir == f"{tmp_path}/out/one/checkpoints"
