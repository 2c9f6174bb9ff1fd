"""scripts/image.sh, which builds the images and runs what they hold without Docker.

The quick tests put a stand-in in buildah's place. Those marked long build and run for real; they want root, Debian's buildah,
debootstrap and iproute2: `bash scripts/test.sh -m long tests/test_image.py`
"""

import copy
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
SERVICES, RESULTS = (runpy.run_path(str(DOCKER / name)) for name in ("services.py", "results.py"))
PARTS = list(RESULTS["WHAT"])
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
PROGRAMS = ("buildah", "debootstrap", "ip")
LACKS = [program for program in PROGRAMS if shutil.which(program) is None]

root = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode
    != 0,
    reason="mounts and namespaces want root",
)


def image(*arguments: str | Path, status: int = 0, seconds: float = 60, **variables: str) -> str:
    """Output of the script. status: the exit status that is expected."""
    done = subprocess.run(
        ["bash", ROOT / "scripts/image.sh", *arguments],
        env={**os.environ, "SRPO_VENV": sys.prefix, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == status, done.stdout[-8000:]
    return done.stdout


@pytest.fixture
def stand_in(tmp_path) -> dict[str, str]:
    """A PATH whose buildah notes its arguments in tmp_path/calls and does nothing; its builds fail where FAILS is set."""
    programs = tmp_path / "programs"
    programs.mkdir()
    note = f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path}/calls\n[ "$1" != bud ] || [ -z "${{FAILS:-}}" ]\n'
    for name in PROGRAMS:
        (programs / name).write_text(note)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_wrong_arguments_are_named():
    assert "the first argument is a folder" in image(status=1)
    assert "the first argument is a folder" in image("--all", status=1)
    assert f"no part 'gpus'; there are {' '.join(PARTS)}" in image("/nowhere", "image", "gpus", status=1)


@root
def test_a_program_that_is_missing_is_named(tmp_path):
    for name in ("bash", "dirname", "realpath", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    text = image("/nowhere", status=1, PATH=str(tmp_path))
    assert "no buildah: apt-get install --no-install-recommends buildah debootstrap iproute2" in text


@root
def test_the_image_is_built_from_the_pinned_dockerfile_on_another_base(stand_in, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    text = image(tmp_path / "images", "image", "smoke", **stand_in, PIP_FIND_LINKS=f"file://{wheels}", PIP_RETRIES="3")
    whole, smoke = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("bud ")]
    base = next(line.split()[1] for line in (DOCKER / "Dockerfile.cpu").read_text().splitlines() if line[:4] == "FROM")
    assert base.startswith("debian:bookworm-") and "@sha256:" in base
    for call in (whole, smoke):
        assert f"--build-context {base}=container-image://localhost/base" in call
        assert f"--volume={wheels}:{wheels}:ro" in call and "--file docker/Dockerfile.cpu" in call
        assert call.endswith(" .") and "--pull=never" in call
    assert "--tag srpo-cpu" in whole and "--target" not in whole and "--target smoke" in smoke
    assert "[image] smoke: exit status 0" in text and "record: " in text


@root
def test_the_gpu_image_is_cut_behind_its_first_run(stand_in, tmp_path):
    text = image(tmp_path / "images", "gpu", **stand_in)
    start = (tmp_path / "images/Dockerfile.gpu").read_text()
    assert (DOCKER / "Dockerfile.gpu").read_text().startswith(start)
    assert start.endswith('\nRUN bash /tmp/system.sh gpu "$SRPO_UID"\n') and start.count("\nRUN ") == 1
    (call,) = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("bud ")]
    assert "--build-context nvidia/cuda:" in call and f"--file {tmp_path}/images/Dockerfile.gpu" in call
    assert "not tried: what follows. It needs nvidia/cuda:" in text


@root
def test_a_part_that_fails_ends_the_script(stand_in, tmp_path):
    text = image(tmp_path / "images", "smoke", "gpu", status=1, FAILS="yes", **stand_in)
    assert "[image] smoke: exit status 1" in text and "gpu" not in text
    assert "[image] smoke: exit status 1" in (tmp_path / "images/smoke.log").read_text()
    assert not (tmp_path / "images/results.json").exists()


@root
def test_a_container_has_no_rights_of_the_administrators(stand_in, tmp_path):
    image(tmp_path / "images", "run", "stranger", **stand_in)
    first, other = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("run ")]
    assert first.startswith("run --cap-drop all first -- bash scripts/quickstart.sh ")
    assert "--user 12345:12345 --env HOME=/tmp" in other and ":/srpo/outputs other -- bash" in other


def test_the_services_are_those_of_the_compose_file():
    head, worker = SERVICES["lines"](COMPOSE)
    volumes = "outputs:/srpo/outputs token:/home/srpo/.ray"
    command = "bash scripts/ray_head.sh --port=6379 --object-store-memory=1000000000"
    health = "bash -c 'exec 3<> /dev/tcp/127.0.0.1/8265'"
    assert head == f"head|srpo-cpu|2g|SRPO_RANKS=1|{volumes}|{command}|{health}"
    assert worker.startswith(f"worker|srpo-cpu|2g|SRPO_RANKS=1|{volumes}|bash scripts/ray_join.sh head:6379 ")
    assert worker.endswith("|true")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cap_drop": []}, "head: cap_drop is \\[\\], and scripts/image.sh knows \\['ALL'\\] alone"),
        ({"security_opt": None}, "head: security_opt is None"),
        ({"ports": ["8265:8265"], "user": "root"}, "head: scripts/image.sh does not know ports, user"),
        ({"depends_on": {"worker": {}}}, "head stands before worker, on which it depends"),
        ({"healthcheck": {"test": ["CMD-SHELL", "true"]}}, "a health check that is not CMD"),
        ({"environment": {"A": "b c"}}, "head: a word with a space"),
        ({"command": "bash -c 'a | b'"}, "head: .* a '|'"),
    ],
)
def test_what_is_not_done_as_compose_does_it_is_refused(change, message):
    compose = copy.deepcopy(COMPOSE)
    compose["services"]["head"].update(change)
    with pytest.raises(ValueError, match=message):
        SERVICES["lines"](compose)


LOG = """\
    0 s  [1/2] STEP 1/3: FROM localhost/base AS image
    1 s  [1/2] STEP 2/3: RUN bash /tmp/system.sh
    1 s  a line of it
   17 s  --> 3ef77d6080a
   17 s  [1/2] STEP 3/3: RUN bash scripts/install.sh
   17 s  --> Using cache 3ef77d6080ab
   18 s  [2/2] STEP 1/1: RUN bash scripts/quickstart.sh
  110 s  {"method": "srpo", "steps": 2, "before": 0.4475, "after": 0.5}
  111 s  [2/2] COMMIT srpo-cpu
  119 s  size: 4.6 GB
  120 s  [image] smoke: exit status 0
"""


def test_seconds_and_what_came_out_are_read_from_a_log(tmp_path):
    (tmp_path / "smoke.log").write_text(LOG)
    (tmp_path / "gpu.log").write_text("    3 s  error: no route\n")
    whole, *steps, gpu = RESULTS["rows"](tmp_path)
    assert whole[0] == "smoke" and whole[2] == 120
    assert whole[3] == "exit status 0; size: 4.6 GB; steps: 2, held-out accuracy 44.8 % before and 50.0 % after"
    assert steps == [
        ["smoke", "`RUN bash /tmp/system.sh`", 16, None],
        ["smoke", "`RUN bash scripts/quickstart.sh`", 93, None],
    ]
    assert gpu[2:] == [3, "not ended"]


def test_the_record_in_the_docs_is_of_every_part():
    record = json.loads((ROOT / "docs/results/docker.json").read_text())
    assert record["columns"] == RESULTS["COLUMNS"]
    assert list(dict.fromkeys(row[0] for row in record["rows"])) == PARTS
    assert all(row[3] is None or row[3].startswith("exit status 0") for row in record["rows"])
    assert not record["commit"].endswith("-dirty")


# -------------------------------------------------------------------------------------------------------- for real


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    yield folder
    shutil.rmtree(folder)


@root
@pytest.mark.long
@pytest.mark.timeout(4000)
@pytest.mark.skipif(bool(LACKS), reason=f"missing: {' '.join(LACKS)}")
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_built_and_run(part, work):
    """In their order: each stands on those before it."""
    image(work, part, seconds=3900)
    lines = RESULTS["read"](work / f"{part}.log")
    result = next(row[3] for row in RESULTS["rows"](work) if row[0] == part)
    assert result.startswith("exit status 0")
    commands = [instruction for instruction, _ in RESULTS["steps"](lines) if instruction.startswith("RUN ")]
    if part == "image":
        assert len(commands) == 3 and "size: " in result and "GB" in result
    elif part == "gpu":
        assert commands == ['RUN bash /tmp/system.sh gpu "$SRPO_UID"']
    elif part in ("smoke", "run", "stranger", "cluster"):
        wanted = {"stranger": 1, "cluster": 10}.get(part, 2)
        assert f"steps: {wanted}, held-out accuracy 4" in result, result
    if part == "stranger":
        written = (work / "volumes/stranger/stranger/summary.json").stat()
        assert (written.st_uid, written.st_gid) == (12345, 12345)
    if part == "cluster":
        assert any("succeeded" in text for _, text in lines)
        assert {text.split()[0] for _, text in lines if " is up at 10.77.0." in text} == {"head", "worker"}
