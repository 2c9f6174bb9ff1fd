"""scripts/slurm.sbatch on a real Slurm of two nodes: a Ray node, a training rank and a vLLM server on each.

Minutes, root and Debian's Slurm: `bash scripts/test_cluster.sh`.
"""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import slurm_cluster
from cluster_runs import ROOT, SETTINGS, environment, steps, until
from slurm_cluster import ENDED, NODES, Job, SlurmCluster

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    cluster = SlurmCluster(folder, {**environment(), "SRPO_LOGS": str(folder / "logs")})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


STAND_IN = """#!/bin/bash
case "$2" in
    srpo_recipe.run.cluster) echo "export VERL_PLATFORM=cpu" ;;
    srpo_recipe.main)
        printf '%s\\n' "${@:3}" > "$NOTES/start-${SLURM_RESTART_COUNT:-0}"
        [ -z "${SLURM_RESTART_COUNT:-}" ] || exit 0
        last=${@: -1}
        until [ -e "${last#run.stop_file=}" ]; do sleep 0.2; done
        exit 75 ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch, slurm) -> Path:
    """An environment whose Ray sleeps, and whose run notes its arguments, waits for the stop file, and ends the second time."""
    for name, text in (("python", STAND_IN), ("ray", "#!/bin/sh\nexec sleep 300\n")):
        path = tmp_path / "venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setitem(slurm.environment, "SRPO_VENV", str(tmp_path / "venv"))
    monkeypatch.setitem(slurm.environment, "NOTES", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_signal_leads_to_a_requeue_with_the_same_arguments(slurm, stand_in):
    awkward = ["trainer.logger=[tensorboard, console]", """trainer.project_name="it's $HOME; (x)  y" """]
    job = Job(slurm, stand_in, ["--time=5"], awkward)
    until((stand_in / "start-0").exists, 60, job.log)
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(120)
    assert job.state() == "COMPLETED" and slurm.job(job.number)["Restarts"] == "1", job.log()
    first, second = ((stand_in / f"start-{number}").read_text().splitlines() for number in (0, 1))
    stop_file = f"run.stop_file={slurm.folder}/logs/{job.number}/STOP"
    assert first == second == ["trainer.nnodes=2", *SETTINGS, f"run.root={stand_in}", *awkward, stop_file]
    log = job.file.read_text()
    assert log.count(f"job {job.number}, start ") == 2 and "start 2, on n1 n2 (127.0.0.2 127.0.0.3)" in log


@pytest.mark.slow
def test_a_run_that_fails_is_not_requeued(slurm, stand_in):
    (stand_in / "venv" / "bin" / "python").write_text(STAND_IN.replace("exit 75", "exit 3"))
    job = Job(slurm, stand_in, ["--time=5"], [])
    until((stand_in / "start-0").exists, 60, job.log)
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(60)
    found = slurm.job(job.number)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "3:0", "0"), job.log()


@pytest.mark.slow
def test_each_element_of_a_sweep_runs_its_line(slurm, stand_in):
    name = f"test-{stand_in.name}"
    folder = ROOT / "outputs" / "sweeps" / name
    command = [
        "bash",
        "scripts/sweep.sh",
        "--name",
        name,
        "--seeds",
        "1 2",
        "--sbatch",
        f"--nodes=2 --output={stand_in}/%a.log",
    ]
    (stand_in / "venv" / "bin" / "python").write_text(
        STAND_IN.replace("start-${SLURM_RESTART_COUNT:-0}", "$SLURM_ARRAY_TASK_ID")
    )
    try:
        slurm.ask(*command, "--", "srpo.beta=2", cwd=ROOT)
        until(lambda: all((stand_in / number).exists() for number in "01"), 90, lambda: slurm.ask("squeue"))
        for number, seed in (("0", 1), ("1", 2)):
            words = (stand_in / number).read_text().splitlines()
            run = [f"srpo.seed={seed}", f"run.root=outputs/sweeps/{name}", f"run.name=srpo-sums-seed{seed}"]
            assert words[:-1] == ["trainer.nnodes=2", "method=srpo", "task=sums", *run, "srpo.beta=2"]
        again = slurm.ask(*command, "--", "srpo.beta=2", cwd=ROOT, check=False)
        assert "Submitted" not in again, "its jobs are still in the queue"
    finally:
        slurm.ask("scancel", f"--name=srpo-{name}", check=False)
        shutil.rmtree(folder, ignore_errors=True)


ELEMENTS = """#!/bin/bash
case "$2" in
    srpo_recipe.run.cluster) echo "export VERL_PLATFORM=cpu" ;;
    srpo_recipe.main)
        trap 'touch "$NOTES/told-$SLURM_ARRAY_TASK_ID"; exit 143' TERM
        touch "$NOTES/started-$SLURM_ARRAY_TASK_ID"
        until [ -e "$NOTES/end-$SLURM_ARRAY_TASK_ID" ]; do sleep 0.2; done ;;
esac
"""


@pytest.mark.slow
def test_an_element_that_ends_leaves_the_others_alone(slurm, stand_in):
    """One of them has the number of the whole array, which the launcher told to end what is left of the job."""
    (stand_in / "venv" / "bin" / "python").write_text(ELEMENTS)
    options = ["--parsable", "--nodes=1", "--array=0-1", f"--output={stand_in}/%a.log"]
    array = slurm.ask("sbatch", *options, "scripts/slurm.sbatch", *SETTINGS, f"run.root={stand_in}", cwd=ROOT).strip()

    def state(element: int) -> str:
        return slurm.job(f"{array}_{element}")["JobState"]

    def log() -> str:
        return "\n".join(path.read_text() for path in sorted(stand_in.glob("*.log")))

    until(lambda: all((stand_in / f"started-{element}").exists() for element in (0, 1)), 90, log)
    numbers = {slurm.job(f"{array}_{element}")["JobId"]: element for element in (0, 1)}
    first = numbers[array]  # the one that has the array's own number
    (stand_in / f"end-{first}").touch()
    until(lambda: state(first) in ENDED, 90, log)
    assert state(first) == "COMPLETED", log()
    assert state(1 - first) == "RUNNING" and not (stand_in / f"told-{1 - first}").exists(), log()
    (stand_in / f"end-{1 - first}").touch()
    until(lambda: state(1 - first) in ENDED, 90, log)
    assert state(1 - first) == "COMPLETED", log()


@pytest.mark.long
def test_a_run_hits_its_time_limit_is_requeued_resumes_and_ends(slurm, tmp_path):
    """The first start has four minutes and is told two before the end; the run needs more. The next has time enough."""
    total = 120
    overrides = [f"trainer.total_training_steps={total}", "trainer.save_freq=-1"]
    job = Job(slurm, tmp_path, ["--time=4", "--signal=B:USR1@120"], overrides)
    until(lambda: slurm.job(job.number)["Restarts"] != "0" or job.state() in ENDED, 300, job.log)
    slurm.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=20")
    job.wait(900)
    log = job.file.read_text()
    assert job.state() == "COMPLETED", job.log()
    (stopped,) = (int(step) for step in re.findall(r"stopped after step (\d+)", log))
    assert slurm.job(job.number)["Restarts"] == "1" and log.count("requeueing job") == 1, job.log()
    assert 0 < stopped < total
    assert steps(tmp_path) == job.steps() == list(range(1, total + 1))
    folders = [path.name for path in (tmp_path / "run" / "checkpoints").glob("global_step_*")]
    assert folders == [f"global_step_{stopped}"], "no other checkpoint than the one at the signal"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == total
    for node in NODES:
        text = (slurm.folder / "logs" / job.number / f"ray-{node}.log").read_text()
        assert "Ray runtime started" in text
        assert not slurm.processes(job.number, node, "raylet"), "the job is over and Ray still runs"


@pytest.mark.long
def test_a_node_that_dies_ends_the_job_with_the_real_error_and_the_next_job_resumes(slurm, tmp_path):
    total = 12
    overrides = [f"trainer.total_training_steps={total}", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2"]
    job = Job(slurm, tmp_path, ["--time=15"], overrides)
    until(lambda: len(steps(tmp_path)) >= 2 or job.state() in ENDED, 400, job.log)
    assert job.state() == "RUNNING", job.log()
    (raylet,) = slurm.processes(job.number, "n2", "raylet")
    raylet.send_signal(signal.SIGKILL)
    job.wait(180)
    assert job.state() == "FAILED", job.log()
    failure = (tmp_path / "run" / "failure.txt").read_text()
    headline = failure.splitlines()[0]  # of whatever on that node was missed first
    assert re.search("died|is dead", headline) and NODES["n2"] in headline, failure
    assert failure.split("\n\n")[0] in job.file.read_text()
    done = steps(tmp_path)
    assert len(done) < total

    again = Job(slurm, tmp_path, ["--time=15"], overrides, log="again.log")
    again.wait(500)
    assert again.state() == "COMPLETED", again.log()
    assert steps(tmp_path) == list(range(1, total + 1))
    assert again.steps() == list(range(done[-1] + 1, total + 1))
