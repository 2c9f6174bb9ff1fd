"""What a user sees of a run: the method's lines and no other; what the libraries say is kept, a file for each process."""

import io
import os
import subprocess
import sys

import pytest

from srpo_recipe.run import screen
from srpo_recipe.run.say import END, PHASE

RUN = """
import os, sys, threading
import ray
from srpo_recipe.run import screen
from srpo_recipe.run.say import END, phase_done, say

@ray.remote
class Trainer:
    def fit(self):
        print("a library in the trainer")
        os.system("echo a program of the trainer >&2")
        phase_done("data")
        say("step 1/2 | reward 0.5 ± 0.1")
        sys.stdout.write("step  50%|####  |")  # a progress bar, without an end of line
        say("step 2/2 | reward 0.7")
        phase_done(END)

with screen.of_run(sys.argv[1], sys.argv[2], 0.0) as shown:
    print("a library in the driver", flush=True)
    os.system("echo a program of the driver >&2")
    shown.phase("environment")
    ray.init(num_cpus=1, include_dashboard=False)
    ray.get(Trainer.remote().fit.remote())
    assert shown.ended.wait(20)
    ray.shutdown()
print("summary")
"""
OURS = ["environment", "data", "step 1/2 | reward 0.5 ± 0.1", "step 2/2 | reward 0.7", "summary"]
THEIRS = ["a library in the driver", "a program of the driver", "a library in the trainer", "a program of the trainer"]


def run(folder, console: str) -> tuple[list[str], str]:
    """Lines on the two streams together, and what RUN/logs holds."""
    command = [sys.executable, "-c", RUN, str(folder), console]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    logs = {path.name: path.read_text() for path in (folder / screen.FOLDER).iterdir()}
    return done.stdout.splitlines(), logs


@pytest.mark.slow
def test_only_the_methods_lines_are_shown_and_the_others_are_kept_by_process(tmp_path):
    lines, logs = run(tmp_path, "lines")
    shown = [line.split("  ")[1] if line.startswith("  ") else line for line in lines]
    assert shown == OURS
    assert all(line.endswith(" s") for line in lines[:2])
    assert set(THEIRS[:2]) <= set(logs[screen.DRIVER_LOG].splitlines())
    (trainer,) = (text for name, text in logs.items() if name.startswith("Trainer-"))
    assert set(THEIRS[2:]) <= set(trainer.splitlines())


@pytest.mark.slow
def test_everything_is_shown_when_asked_for_and_kept_as_well(tmp_path):
    lines, logs = run(tmp_path, "all")
    text = "\n".join(lines)
    for line in THEIRS + OURS:
        assert line in text, line
    assert any(name.startswith("Trainer-") for name in logs)


def test_the_streams_come_back_after_a_failure(tmp_path, capfd):
    with pytest.raises(ValueError), screen.of_run(str(tmp_path), "lines", 0.0) as shown:
        os.write(1, b"a library")
        print("the cause", file=shown.err)
        raise ValueError
    print("afterwards")
    out, err = capfd.readouterr()
    assert (out, err) == ("afterwards\n", "the cause\n")


def test_a_process_keeps_one_file_when_ray_learns_its_name_late(tmp_path):
    said = []
    with screen._processes_kept(tmp_path, said.append):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        here = {"ip": "10.0.0.1", "localhost": "10.0.0.1", "pid": 7}
        for data in (
            {**here, "lines": ["early", ":actor_name:Worker"]},
            {**here, "actor_name": "Worker", "lines": ["srpo| seen", "late"]},
            {**here, "ip": "10.0.0.2", "task_name": "a/b", "lines": ["elsewhere"]},
            {**here, "pid": "autoscaler", "lines": ["no machine to rent"]},
        ):
            dispatcher.emit(data)
    assert said == ["seen"]
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"Worker-7.log": "early\nsrpo| seen\nlate\n", "a_b-10.0.0.2-7.log": "elsewhere\n"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_of_the_steps_below_the_lines():
    terminal = Terminal()
    shown = screen.Screen(terminal, terminal, 0.0)
    shown.phase("data")
    shown.line("step 3/40 | reward [bold]0.5")
    print("a library")
    shown.line(f"{PHASE}{END}")
    shown.close()
    text = terminal.getvalue()
    assert (
        "a library" not in text
        and "step 3/40 | reward [bold]0.5" in text
        and "3/40" in text.split("reward")[1]
        and END not in text
    )
    assert shown.ended.is_set()


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    """Every line to it raises EIO. Before the hang-up is known they are lost, afterwards they go nowhere."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(screen, "_Bar", lambda out: None)
        shown = screen.Screen(terminal, terminal, 0.0)
        shown.line("step 1/9 | here")
        assert b"step 1/9 | here" in os.read(master, 1000)
        os.close(master)
        with pytest.raises(OSError):
            os.write(slave, b"x")
        shown.line("step 2/9 | lost")
        shown.hung_up()
        assert os.write(slave, b"x") == 1
        shown.line("step 3/9 | nowhere")
        assert shown.where() == "after step 3/9" and not shown.training()


def test_a_file_gets_its_lines_after_a_hang_up_as_well(tmp_path):
    with (tmp_path / "log").open("w") as file:
        shown = screen.Screen(file, file, 0.0)
        shown.hung_up()
        shown.line("step 1/9 | kept")
    assert (tmp_path / "log").read_text() == "step 1/9 | kept\n"


def test_how_far_a_run_has_come():
    shown = screen.Screen(io.StringIO(), io.StringIO(), 0.0)
    assert shown.where() == "start, after: nothing"
    for phase in ("environment", "cluster", "rollout engine"):
        assert not shown.training()
        shown.phase(phase)
    assert shown.training() and shown.where() == "the first step, after: environment, cluster, rollout engine"
