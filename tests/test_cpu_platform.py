"""The CPU support: only where it is wanted, and each patch only as long as it is needed."""

import inspect
import os
import subprocess
import sys

import pytest
import torch

from srpo_recipe.machine import on_cpu


def modules_after(statement: str, **environment: str) -> set[str]:
    """Our modules that a fresh process has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(name for name in sys.modules if name.startswith('srpo_recipe')))"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "SRPO_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def test_a_run_on_gpus_never_imports_the_cpu_folder():
    loaded = modules_after("import verl", SRPO_PLATFORM="gpu")
    assert "srpo_recipe.plugin" in loaded
    assert not any(name.startswith("srpo_recipe.cpu") for name in loaded)


def test_a_run_on_the_cpu_does():
    assert "srpo_recipe.cpu.platform" in modules_after("import verl", SRPO_PLATFORM="cpu")


@pytest.mark.parametrize(
    "environment, expected",
    [({"SRPO_PLATFORM": "cpu", "VERL_PLATFORM": "cuda"}, True), ({"SRPO_PLATFORM": "gpu"}, False),
     ({"VERL_PLATFORM": "cpu"}, True), ({"VERL_PLATFORM": "cuda"}, False)],
)  # fmt: skip
def test_who_decides(monkeypatch, environment, expected):
    for name in ("SRPO_PLATFORM", "VERL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert on_cpu() is expected


def test_another_platform_is_refused(monkeypatch):
    monkeypatch.setenv("SRPO_PLATFORM", "tpu")
    with pytest.raises(ValueError, match="cpu, gpu or auto"):
        on_cpu()


def test_the_patched_log_probs_are_verls_bit_for_bit_and_still_needed():
    from verl.utils import torch_functional

    from srpo_recipe.cpu import patches

    source = inspect.getsource(torch_functional).split("def logprobs_from_logits_v2", 1)[1].split("\ndef ", 1)[0]
    assert "for logit in logits" in source, "verl no longer loops over rows: drop patch 2 of cpu/patches.py"
    namespace = dict(vars(torch_functional))
    exec("def original" + source, namespace)
    logits, labels = torch.randn(7, 5, 31), torch.randint(31, (7, 5))
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (f(logits.to(dtype), labels) for f in (patches.logprobs_from_logits, namespace["original"]))
        assert torch.equal(ours, theirs)


def test_split_sequences_still_need_a_kernel_that_no_cpu_has():
    """Patch 3: transformers' function asks for flash-attn, and verl splits no other attention."""
    import transformers
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    tensors = [torch.zeros(1, 4, 2, 8)] * 3
    with pytest.raises((ImportError, ValueError, TypeError)):
        _flash_attention_forward(*tensors, None, 4, True, attn_implementation="flash_attention_2")
    with pytest.raises(ImportError):
        transformers.AutoModelForCausalLM.from_config(small("Qwen3Config"), attn_implementation="flash_attention_2")


def small(name: str, **options):
    """A configuration of two layers."""
    import transformers

    sizes = dict(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3,
    )  # fmt: skip
    return getattr(transformers, name)(**sizes, **options)


@pytest.mark.parametrize("name, options", [("Qwen3Config", {}), ("MistralConfig", {"sliding_window": 3})])
def test_packed_attention_is_that_of_the_sequences_one_by_one(name, options):
    import transformers
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    from srpo_recipe.machine import PACKED_SDPA, register_attention

    register_attention()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(small(name, **options), attn_implementation="sdpa").eval()
    rows = [torch.randint(50, (1, length)) for length in (5, 9, 1)]
    with torch.no_grad():
        expected = torch.cat([model(input_ids=row).logits for row in rows], dim=1)
        apply_monkey_patch(model, use_remove_padding=True)  # as verl's engine does
        model.set_attn_implementation(PACKED_SDPA)
        places = torch.cat([torch.arange(row.shape[1]) for row in rows]).unsqueeze(0)
        packed = {
            "input_ids": torch.cat(rows, dim=1),
            "position_ids": places,
            "attention_mask": None,
            "use_cache": False,
        }
        found = model(**packed).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [{"softcap": 30.0}, {"dropout": 0.1}, {"is_causal": False}, {"position_ids": None}])
def test_packed_attention_refuses_what_it_does_not_do(given):
    from srpo_recipe.cpu.attention import packed_attention

    arguments = {"is_causal": True, "position_ids": torch.arange(4).unsqueeze(0)} | given
    with pytest.raises(NotImplementedError, match="this model needs sdpa or eager, and no sequence parallelism"):
        packed_attention(*[torch.zeros(1, 4, 2, 8)] * 3, None, 4, **arguments)


def test_weights_still_travel_through_a_socket_named_after_the_ray_job():
    import ray.runtime_context
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    source = inspect.getsource(vllm_rollout)
    assert "get_job_id()" in source and "rl-colocate-zmq-{job_id}" in source, "drop patch 1 of cpu/patches.py"

    class Context:
        gcs_address = "127.0.0.1:6543"

    from srpo_recipe.cpu.patches import unique_job_id

    assert unique_job_id(lambda self: "01000000")(Context()) == "01000000-6543"
    assert hasattr(ray.runtime_context.RuntimeContext, "gcs_address")


def test_verl_still_asks_for_a_backend_that_torch_refuses():
    from verl.utils import distributed

    source = inspect.getsource(distributed.initialize_global_process_group_ray)
    assert "cpu:gloo," in source, "verl builds another backend string: look at cpu/platform.py join_gloo"


def test_vllm_still_packs_linear_weights_on_a_cpu():
    _custom_ops = pytest.importorskip("vllm._custom_ops")
    assert hasattr(_custom_ops, "_supports_onednn"), "drop cpu/vllm_plugin.py"
