"""The GPU groups: each composes with both models and the three methods, is accepted by our check and verl's, and fits 80 GB."""

from copy import deepcopy
from functools import cache

import pytest
from omegaconf import OmegaConf

from srpo_recipe.plan import weights
from srpo_recipe.plan.architecture import describe_model
from srpo_recipe.plan.device import Device
from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.plan import plan
from srpo_recipe.plan.setup import from_config
from srpo_recipe.plan.step import Expectation, spread
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

RANKS = {"gpu1": 1, "gpu8": 8, "gpu8x2": 16, "gpu8x4": 32}
GPU = Device(80e9, 6 * GIB, "80 GB")
DATA = ("task=parquet", "data.train_files=train.parquet", "data.val_files=test.parquet")
EXPECTED = Expectation(200, 400, 0.4)
CASES = [
    (hardware, model, method)
    for hardware in RANKS
    for model in ("qwen3_4b", "qwen3_8b")
    for method in ("srpo", "sdpo", "grpo")
]


@cache
def composed(hardware: str, model: str, method: str, *overrides: str):
    return compose_config([f"hardware={hardware}", f"model={model}", f"method={method}", *DATA, *overrides])


@cache
def architecture(path: str):
    return describe_model(path)


def planned(*names: str) -> dict:
    config = composed(*names)
    return plan(architecture(config.actor_rollout_ref.model.path), from_config(config), GPU, EXPECTED)


@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_a_group_fits_80_gb_at_the_papers_lengths(names):
    config = composed(*names)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 8192)
    settings, setup, found = check(config), from_config(config), planned(*names)
    assert setup.world == RANKS[names[0]] and setup.teacher == settings.needs_teacher == (names[2] != "grpo")
    assert found["fits"], found["problems"]
    assert spread(setup) is None
    # a vLLM engine holds a full-length rollout many times over, or it would run them one by one
    assert found["rollout"]["longest rollouts that fit"] > 8
    # what is configured is no more than what the planner says fits
    assert setup.update_tokens <= found["micro-batch"]["most tokens that fit"]


@pytest.mark.parametrize("names", CASES[::4], ids="-".join)
def test_verl_accepts_the_group(names):
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = deepcopy(composed(*names))
    OmegaConf.resolve(config)
    validate_config(config=config, use_reference_policy=False, use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.engine.strategy == "fsdp2" and actor.engine.offload_policy == (names[0] == "gpu1")


@pytest.mark.parametrize("hardware", RANKS)
def test_the_token_budgets_hold_the_longest_sequence(hardware):
    """verl refuses a micro-batch budget shorter than a sequence; the trainer would raise the teacher's."""
    config = composed(hardware, "qwen3_8b", "srpo")
    student = config.data.max_prompt_length + config.data.max_response_length
    teacher = config.srpo.teacher.max_prompt_tokens + config.data.max_response_length
    assert config.actor_rollout_ref.actor.use_dynamic_bsz and config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= student
    assert config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu >= student
    assert config.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu >= teacher
    assert (
        config.actor_rollout_ref.model.use_remove_padding
        and config.actor_rollout_ref.model.enable_gradient_checkpointing
    )


def test_one_gpu_keeps_the_weights_on_the_host_and_the_planner_says_why():
    setup = from_config(composed("gpu1", "qwen3_8b", "srpo"))
    assert setup.offload_policy and setup.teacher_offload_policy
    assert 150 * GIB < weights.host_bytes(architecture("Qwen/Qwen3-8B"), setup) < 200 * GIB
    keys = [f"actor_rollout_ref.{name}.fsdp_config.offload_policy" for name in ("actor", "ref")]
    for model in ("qwen3_4b", "qwen3_8b"):
        found = planned("gpu1", model, "srpo", *(f"{key}=false" for key in keys))
        assert not found["fits"]
        assert all(f"{key}=true" in found["problems"][0] for key in keys)


def fits(hardware: str, model: str, size: float, *overrides: str) -> dict:
    config = composed(hardware, model, "srpo", *overrides)
    device = Device(size * 1e9, 6 * GIB, f"{size} GB")
    assert check(config).needs_teacher
    return plan(architecture(config.actor_rollout_ref.model.path), from_config(config), device, EXPECTED)


@pytest.mark.parametrize(
    "hardware, model, size",
    [("gpu1_lora", "qwen3_4b", 80), ("gpu1_lora", "qwen3_8b", 80), ("gpu1_lora_24gb", "qwen3_4b", 24)],
)
def test_an_adapter_fits_one_gpu_where_all_weights_do_not(hardware, model, size):
    found = fits(hardware, model, size)
    assert found["fits"], found["problems"]
    assert found["rollout"]["longest rollouts that fit"] > 4
    full = ["actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.model.lora_alpha=16"]
    full += [f"actor_rollout_ref.{name}.fsdp_config.offload_policy=false" for name in ("actor", "ref")]
    assert not fits(hardware, model, size, *full)["fits"]


LONG = [(model, method) for model in ("qwen3_4b", "qwen3_8b") for method in ("srpo", "sdpo", "grpo")]


@pytest.mark.parametrize("names", LONG, ids="-".join)
def test_responses_of_32k_tokens_fit_groups_of_four_ranks(names):
    config = composed("gpu8_long", *names)
    settings, setup, found = check(config), from_config(config), planned("gpu8_long", *names)
    assert config.data.max_response_length == 32768 and (setup.world, setup.split, setup.shares) == (8, 4, 2)
    assert setup.teacher == settings.needs_teacher == (names[1] != "grpo")
    assert found["fits"], found["problems"]
    assert found["rollout"]["longest rollouts that fit"] > 4
    # budgets are a rank's: a group of four holds the longest sequence of student and teacher
    student = config.data.max_prompt_length + config.data.max_response_length
    teacher = config.srpo.teacher.max_prompt_tokens + config.data.max_response_length
    limits = config.actor_rollout_ref
    assert 4 * limits.actor.ppo_max_token_len_per_gpu >= 2 * student
    assert 4 * limits.rollout.log_prob_max_token_len_per_gpu >= student
    assert 4 * limits.ref.log_prob_max_token_len_per_gpu >= teacher


def test_verl_accepts_split_sequences():
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = deepcopy(composed("gpu8_long", "qwen3_8b", "srpo"))
    OmegaConf.resolve(config)
    validate_config(config=config, use_reference_policy=False, use_critic=False)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine.ulysses_sequence_parallel_size == 4
    assert omega_conf_to_dataclass(config.actor_rollout_ref.ref.fsdp_config).ulysses_sequence_parallel_size == 4
