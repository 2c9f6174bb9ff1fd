"""What can be told of the images without building them; tests/test_image.py builds them."""

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
IGNORED = [
    line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip() and line[0] != "#"
]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text())
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, rest in found]


def of(dockerfile: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(dockerfile) if name == word]


def is_ignored(path: str) -> bool:
    """Docker's rule: a pattern names a file or a folder from the root of the context; `**/` any folder."""
    parts = Path(path).parts
    heads = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(
        fnmatch(head, pattern) or (pattern.startswith("**/") and fnmatch(Path(head).name, pattern[3:]))
        for pattern in IGNORED
        for head in heads
    )


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def dockerfile(request) -> Path:
    return request.param


def test_there_is_one_for_each_kind_of_machine():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


def test_the_base_is_pinned_by_tag_and_digest(dockerfile):
    first, *later = of(dockerfile, "FROM")
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}( AS \w+)?", first)
    stages = {match[1] for stage in (first, *later) if (match := re.search(r" AS (\w+)$", stage))}
    assert {stage.split()[0] for stage in later} <= stages


def test_the_image_ends_as_a_plain_user(dockerfile):
    steps = instructions(dockerfile)
    last = max(index for index, (word, _) in enumerate(steps) if word == "USER")
    assert steps[last][1] == "$SRPO_UID" and "SRPO_UID=1000" in of(dockerfile, "ARG")
    # root installs the system's packages and nothing of ours
    assert [rest.split()[1] for word, rest in steps[:last] if word == "RUN"] == ["/tmp/system.sh"]


def test_what_is_copied_exists_and_is_sent_to_the_builder(dockerfile):
    for copy in of(dockerfile, "COPY"):
        *sources, _ = [word for word in copy.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists() and not is_ignored(source), source


def test_the_builder_gets_what_git_tracks_and_neither_history_nor_secrets():
    assert not [path for path in tracked() if is_ignored(path)]
    for path in (".git/HEAD", ".venv/bin/python", "outputs/a/b", "srpo_recipe/cpu/__pycache__/a.pyc", ".env"):
        assert is_ignored(path), path
    assert not is_ignored("srpo_recipe/records/files.py")


def test_a_change_of_the_sources_does_not_install_the_requirements_again(dockerfile):
    steps = [f"{word} {rest}" for word, rest in instructions(dockerfile)]
    kind = dockerfile.suffix[1:]
    requirements = steps.index(f"RUN CHECKOUT=no bash scripts/install.sh {kind}")
    sources = steps.index("COPY --chown=srpo:srpo . .")
    assert (
        requirements
        < sources
        < next(index for index, step in enumerate(steps) if step.startswith(f"RUN bash scripts/install.sh {kind}"))
    )
    copied = {word for step in steps[:requirements] if step.startswith("COPY") for word in step.split()[1:-1]}
    assert copied == {"docker/system.sh", "--chown=srpo:srpo", "scripts/install.sh", "requirements"}


def test_the_cuda_of_the_base_is_that_of_torch():
    (base,) = of(DOCKER / "Dockerfile.gpu", "FROM")
    (toolkit,) = re.findall(r"(?m)^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements/constraints-gpu.txt").read_text())
    assert base.startswith(f"nvidia/cuda:{toolkit}.")
    assert f"cu{toolkit.replace('.', '')}torch" in (ROOT / "scripts/install.sh").read_text()


def test_the_system_script_refuses_another_kind():
    result = subprocess.run(["bash", DOCKER / "system.sh", "tpu"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "'tpu'" in result.stderr


def test_an_environment_of_other_hardware_is_not_overwritten(tmp_path):
    """Such as in the GPU image that was started without its GPUs."""
    (tmp_path / ".srpo-requirements").write_text("gpu 0123456789abcdef\n")
    command = ["bash", ROOT / "scripts/install.sh", "cpu", tmp_path]
    plain = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "made for gpu" in result.stderr and "--gpus all" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".srpo-requirements"]


def test_without_a_compiler_the_part_that_needs_one_is_left_out_or_refused(tmp_path):
    """As on a clean machine, where one package of reasoning-gym's would have to be built."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "sha256sum", "python3"):
        (tools / name).symlink_to(sys.executable if name == "python3" else shutil.which(name))
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".srpo-requirements").write_text("gpu 0123456789abcdef\n")  # so that nothing is installed
    command = ["bash", ROOT / "scripts/install.sh", "cpu", venv]
    plain = {"PATH": str(tools)}
    result = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=60)
    assert "smollm is left out" in result.stdout and "apt-get install gcc" in result.stdout
    asked = {**plain, "WITH": "test smollm"}
    result = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "error: smollm needs a C compiler" in result.stderr


def test_the_compose_file_is_a_cluster_of_two():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(compose["services"]) == {"head", "worker"}
    for name, service in compose["services"].items():
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["volumes"] == ["outputs:/srpo/outputs", "token:/home/srpo/.ray"]
        # Ray puts its object store elsewhere when it does not fit
        assert service["shm_size"] == "2gb" and service["command"].endswith("--object-store-memory=1000000000")
        assert not {"ports", "privileged", "user"} & set(service), name  # nothing of it is open to others
        _, script, *_ = service["command"].split()
        assert (ROOT / script).is_file(), script
    # a volume takes its owner from the image's folder
    assert "mkdir -p data outputs ~/.ray" in of(DOCKER / "Dockerfile.cpu", "RUN")[-2]
    assert compose["services"]["worker"]["command"].split()[2] == "head:6379"
    assert "--port=6379" in compose["services"]["head"]["command"]


def lint(tool: str, *arguments: Path) -> None:
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not found:
        pytest.skip(f"{tool} is not installed")
    result = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_has_nothing_to_say():
    lint("hadolint", *DOCKERFILES)


def test_shellcheck_has_nothing_to_say():
    lint("shellcheck", *DOCKER.glob("*.sh"), ROOT / "scripts/install.sh")


def test_the_containers_of_the_cluster_have_no_rights_of_the_administrators():
    """Docker's default gives a container fourteen of them, and a program with the set-uid bit may take more."""
    for name, service in yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].items():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("cap_add") and not service.get("privileged"), name


def test_every_container_in_the_docs_is_run_without_them():
    text = (ROOT / "docs" / "docker.md").read_text() + "".join(path.read_text() for path in DOCKERFILES)
    commands = re.findall(r"^(?:# *)?docker run .*$", text, re.M)
    assert len(commands) >= 4
    for command in commands:
        assert "--cap-drop=ALL --security-opt=no-new-privileges" in command, command
