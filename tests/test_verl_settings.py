"""Every key of verl's config is honoured, refused, or does not reach the loss; a key that is new in verl is none of them."""

from dataclasses import fields

import pytest
import verl.trainer.config
import verl.workers.config
from config_files import BASE, changed, composed, leaves, without
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from srpo_recipe.settings.compose import compose_config, verl_defaults
from srpo_recipe.settings.refusals import (
    ACTOR,
    MODEL,
    REF,
    REFUSALS,
    ROLLOUT,
    TEACHER_REFUSALS,
    UNREAD,
    UNREAD_IN_SYNC,
    Key,
)
from srpo_recipe.settings.rules import check

ROWS = [*REFUSALS, *TEACHER_REFUSALS]

# What reaches the loss, the optimiser step, the teacher or the samples, and works as in verl.
HONOURED = {
    "algorithm": "norm_adv_by_std_in_grpo",
    "algorithm.rollout_correction": ("rollout_is rollout_is_threshold rollout_is_batch_normalize"),
    ACTOR: (
        "clip_ratio_low clip_ratio_high clip_ratio_c ppo_mini_batch_size ppo_epochs shuffle data_loader_seed "
        "use_dynamic_bsz ppo_max_token_len_per_gpu ppo_micro_batch_size_per_gpu optim"
    ),
    f"{ACTOR}.checkpoint": "save_contents load_contents",
    f"{ACTOR}.fsdp_config": (
        "model_dtype mixed_precision param_offload optimizer_offload offload_policy reshard_after_forward fsdp_size "
        "ulysses_sequence_parallel_size seed full_determinism"
    ),
    f"{REF}.fsdp_config": ("mixed_precision param_offload offload_policy reshard_after_forward seed full_determinism"),
    MODEL: (
        "path hf_config_path tokenizer_path trust_remote_code custom_chat_template external_lib override_config "
        "enable_gradient_checkpointing enable_activation_offload use_remove_padding use_liger lora_rank lora_alpha "
        "target_modules exclude_modules"
    ),
    f"{MODEL}.lora": "merge",
    ROLLOUT: (
        "mode n seed temperature top_k top_p ignore_eos calculate_log_probs dtype quantization "
        "quantization_config_file max_model_len engine_kwargs val_kwargs multi_turn agent"
    ),
    "data": (
        "train_files val_files train_max_samples val_max_samples prompt_key max_prompt_length max_response_length "
        "train_batch_size gen_batch_size shuffle seed truncation filter_overlong_prompts apply_chat_template_kwargs "
        "custom_cls tool_config_path function_tool_path mm_processor_kwargs"
    ),
    "reward": "custom_reward_function reward_manager sandbox_fusion",
    "trainer": "total_epochs total_training_steps nnodes n_gpus_per_node device resume_mode resume_from_path",
    "trainer.v1.sampler": "sync_refill_failed_groups custom_sampler sampler_kwargs",
}

# What moves memory, time, files or log lines, and not the loss. A name stands for the section below it.
WITHOUT_EFFECT_ON_THE_LOSS = {
    # sections of what is refused, or of verl's other machinery
    "": "critic distillation transfer_queue global_profiler ray_kwargs",
    "skip": "rollout rollout_tq async_rollout",
    "reward": "num_workers reward_model",
    ACTOR: (
        "profiler qat entropy_from_logits_with_chunking entropy_from_logits_chunk_size entropy_checkpointing "
        # filled in by verl, not by a user
        "engine model_config global_batch_info"
    ),
    f"{ACTOR}.checkpoint": "strict save_lora_only",
    REF: (
        "profiler entropy_from_logits_with_chunking entropy_from_logits_chunk_size entropy_checkpointing "
        "log_prob_max_token_len_per_gpu"
    ),
    **{
        f"{part}.fsdp_config": (
            "qat forward_prefetch use_torch_compile use_no_sync_for_gradient_accumulation pad_to_length_bucket "
            "entropy_from_logits_with_chunking entropy_from_logits_chunk_size entropy_checkpointing "
            # filled in by verl from actor.*, ref.* and model.*
            "use_dynamic_bsz max_token_len_per_gpu micro_batch_size_per_gpu infer_max_token_len_per_gpu "
            "infer_micro_batch_size_per_gpu use_fused_kernels use_remove_padding"
        )
        for part in (ACTOR, REF)
    },
    MODEL: (
        "use_shm mtp fused_kernel_options "
        # filled in by verl from the path
        "local_path local_hf_config_path local_tokenizer_path model_type load_tokenizer hf_config generation_config "
        "tokenizer processor architectures"
    ),
    ROLLOUT: (
        "n_gpus_per_node gpu_memory_utilization enforce_eager cudagraph_capture_sizes "
        "free_cache_engine enable_sleep_mode tensor_model_parallel_size data_parallel_size expert_parallel_size "
        "pipeline_model_parallel_size max_num_batched_tokens max_num_seqs enable_chunked_prefill "
        "enable_prefix_caching scheduling_policy load_format layered_summon log_prob_max_token_len_per_gpu "
        "log_prob_micro_batch_size_per_gpu disable_log_stats router_config_path checkpoint_engine "
        "trace server prometheus profiler custom limit_images disaggregation mtp qat"
    ),
    "data": (
        "tokenizer use_shm val_batch_size validation_shuffle dataloader_num_workers "
        "filter_overlong_prompts_workers image_patch_size image_key video_key audio_key trust_remote_code"
    ),
    "trainer": (
        "project_name experiment_name logger log_val_generations rollout_data_dir validation_data_dir "
        "save_freq checkpoint_callback_class val_before_train val_only test_freq default_hdfs_dir "
        "del_local_ckpt_after_load default_local_dir max_actor_ckpt_to_keep max_critic_ckpt_to_keep "
        "ray_wait_register_center_timeout"
    ),
}

# Fields that a user can set with a plus although verl's YAML does not have them.
DATACLASSES = {
    "algorithm": verl.trainer.config.AlgoConfig,
    "algorithm.rollout_correction": verl.trainer.config.RolloutCorrectionConfig,
    ACTOR: verl.workers.config.FSDPActorConfig,
    f"{ACTOR}.policy_loss": verl.workers.config.PolicyLossConfig,
    f"{ACTOR}.optim": verl.workers.config.FSDPOptimizerConfig,
    f"{ACTOR}.checkpoint": verl.trainer.config.CheckpointConfig,
    f"{ACTOR}.fsdp_config": verl.workers.config.FSDPEngineConfig,
    f"{REF}.fsdp_config": verl.workers.config.FSDPEngineConfig,
    MODEL: verl.workers.config.HFModelConfig,
    ROLLOUT: verl.workers.config.RolloutConfig,
    f"{ROLLOUT}.agent": verl.workers.config.AgentLoopConfig,
    f"{ROLLOUT}.val_kwargs": verl.workers.config.SamplingConfig,
}


def named(table: dict[str, str]) -> set[str]:
    return {f"{section}.{name}".lstrip(".") for section, names in table.items() for name in names.split()}


OF_LORA = {f"{MODEL}.lora", f"{MODEL}.target_parameters"}  # settings/lora.py and tests/test_lora_settings.py
REFUSED = {row.key for row in ROWS} | UNREAD.keys() | UNREAD_IN_SYNC.keys() | OF_LORA
LISTS = {"honoured": named(HONOURED), "without effect": named(WITHOUT_EFFECT_ON_THE_LOSS), "refused": REFUSED}


def keys_of_verl() -> set[str]:
    """Every leaf of verl's composed config, and every field of the dataclasses that the sections become."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    found = {key for key, _ in leaves(OmegaConf.to_container(config, resolve=False))}
    sections = {key.rpartition(".")[0] for key in found}
    for section, schema in DATACLASSES.items():
        names = {f"{section}.{field.name}" for field in fields(schema)}
        found |= {name for name in names if not any(f"{known}.".startswith(f"{name}.") for known in sections)}
    return {key for key in found if key.rpartition(".")[2] not in ("_target_", "_mutable_fields")}


def listed(key: str) -> dict[str, str]:
    """List -> the entry of it that speaks for the key: itself, or the nearest section above it."""
    parts = key.split(".")
    above = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    found = {name: next((entry for entry in above if entry in entries), None) for name, entries in LISTS.items()}
    nearest = max((len(entry) for entry in found.values() if entry), default=0)
    return {name: entry for name, entry in found.items() if entry and len(entry) == nearest}


def test_every_key_of_verl_is_on_one_list():
    unsorted = sorted(key for key in keys_of_verl() if len(listed(key)) != 1)
    assert not unsorted, (
        "decide for each whether the loss honours it (HONOURED), refuses it (settings/refusals.py) or never meets it "
        f"(WITHOUT_EFFECT_ON_THE_LOSS), and put it on that list alone: {unsorted}"
    )


def test_a_key_that_is_new_in_verl_is_on_no_list():
    for key in (
        "algorithm.new",
        f"{ACTOR}.new",
        f"{ACTOR}.fsdp_config.new",
        f"{REF}.new",
        f"{MODEL}.new",
        "trainer.new",
    ):
        assert not listed(key)
    assert not listed("new.key") and not listed(f"{ACTOR}.policy_loss.new") and not listed(f"{ROLLOUT}.new")


def test_no_entry_outlives_verls_key():
    keys = keys_of_verl()
    entries = set().union(*LISTS.values())
    gone = {entry for entry in entries if not any(f"{key}.".startswith(f"{entry}.") for key in keys)}
    # dictionaries that are empty in verl's config, a key that verl asks for without listing it, and keys below interpolations
    free = {"data.apply_chat_template_kwargs", "data.mm_processor_kwargs", "trainer.v1.sampler.sampler_kwargs"}
    unlisted = {row.key for row in ROWS if row.may_be_absent} | {f"{ROLLOUT}.mtp.enable", f"{ROLLOUT}.qat.enable"}
    assert gone == free | unlisted


def test_verls_shipped_config_is_the_composed_one():
    """verl_defaults reads verl's file, because Hydra composes once in a process."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = OmegaConf.to_container(compose("ppo_trainer"), resolve=False)
    assert config.pop("model_engine") == "dp"
    assert config == OmegaConf.to_container(verl_defaults(), resolve=False)


# ------------------------------------------------------------------------------------------------------- the refusal tables


def another(key: str, wanted: tuple) -> object:
    """A value of the same kind that is not wanted."""
    if isinstance(wanted[0], Key):
        wanted = (OmegaConf.select(composed(*BASE), wanted[0]),)
    kind = type(wanted[0])
    return not wanted[0] if kind is bool else wanted[0] + 7 if kind is int else "another"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_each_row_refuses_its_key_with_the_fix(row):
    value = another(row.key, row.wanted)
    fix = OmegaConf.select(composed(*BASE), row.wanted[0]) if isinstance(row.wanted[0], Key) else row.wanted[0]
    fix = "null" if fix is None else fix
    with changed(row.key, value) as config, pytest.raises(ValueError) as error:
        check(config)
    assert str(error.value) == f"{row.key}={value} is not supported: set it to {fix} ({row.why})"


@pytest.mark.parametrize(
    "row, value", [(row, value) for row in ROWS for value in row.wanted if not isinstance(value, Key)], ids=str
)
def test_each_wanted_value_passes(row, value):
    with changed(row.key, value) as config:
        assert check(config)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_each_row_asks_that_its_key_is_there(row):
    """Without it verl's dataclasses give another value than verl's YAML: policy_loss.loss_mode vanilla, forward_only False."""
    with without(row.key) as config:
        if row.may_be_absent:
            assert check(config) and OmegaConf.select(verl_defaults(), row.key) is None
            return
        with pytest.raises(ValueError) as error:
            check(config)
    wanted = row.wanted[0]
    fix = OmegaConf.select(composed(*BASE), wanted) if isinstance(wanted, Key) else wanted
    fix = "null" if fix is None else fix
    assert str(error.value) == f"{row.key} is missing: set it to {fix} ({row.why})"


@pytest.mark.parametrize("row", TEACHER_REFUSALS, ids=lambda row: row.key)
def test_without_a_teacher_its_settings_do_not_matter(row):
    with changed(row.key, another(row.key, row.wanted), ("grpo", *BASE[1:])) as config:
        assert check(config).route == "grpo"


def unread_leaves() -> list[tuple[str, str]]:
    """(key, key that does it instead) of every value in the table's sections, and a key that is not there."""
    found = []
    for section, instead in (UNREAD | UNREAD_IN_SYNC).items():
        default = OmegaConf.select(verl_defaults(), section)
        inner = (
            leaves(OmegaConf.to_container(default), f"{section}.") if OmegaConf.is_dict(default) else [(section, None)]
        )
        found += [(key, instead) for key, _ in inner if key not in {row.key for row in ROWS} and "_target_" not in key]
    return found


@pytest.mark.parametrize("key, instead", unread_leaves())
def test_what_nothing_reads_is_refused_unless_it_is_verls_own(key, instead):
    default = OmegaConf.select(verl_defaults(), key)
    value = "wait" if key.endswith("off_policy_strategy") else another(key, (default,))  # in its range
    with changed(key, value) as config, pytest.raises(ValueError) as error:
        check(config)
    assert f"{key}={value} has no effect here: leave it" in str(error.value) and instead in str(error.value)
    if OmegaConf.select(verl_defaults(), key) is not None:
        assert f"leave it at {default}" in str(error.value)
        with changed(key, default) as config:
            assert check(config)


# ---------------------------------------------------------------------------------------------- from the command line on

# override -> what must be named, the fix among it. Before, each of these was run, and wrong.
WALKED_AROUND = {
    f"{ACTOR}.ulysses_sequence_parallel_size=2": [
        f"{ACTOR}.ulysses_sequence_parallel_size=2",
        "set it to 1",
        f"{ACTOR}.fsdp_config.ulysses",
    ],
    f"{REF}.ulysses_sequence_parallel_size=2": [f"{REF}.ulysses_sequence_parallel_size=2", "set it to 1"],
    f"{REF}.fsdp_config.ulysses_sequence_parallel_size=2": [f"{REF}.fsdp_config.ulysses", "set it to 1"],
    f"{MODEL}.lora.rank=8": [f"{MODEL}.lora.rank=8", "set it to 0"],
    f"{MODEL}.lora_adapter_path=x": [f"{MODEL}.lora_adapter_path=x", "set it to null"],
    "distillation.enabled=true": ["distillation.enabled=True", "set it to False"],
    f"{REF}.strategy=fsdp": [f"{REF}.strategy=fsdp", "set it to fsdp2"],
    f"{ACTOR}.strategy=fsdp": [f"{ACTOR}.strategy=fsdp", "set it to fsdp2"],
    f"{REF}.fsdp_config.fsdp_size=1": [f"{REF}.fsdp_config.fsdp_size=1", "set it to -1"],
    f"{REF}.fsdp_config.optimizer_offload=true": [f"{REF}.fsdp_config.optimizer_offload=True", "set it to False"],
    f"{ACTOR}.entropy_coeff=0.01": [f"{ACTOR}.entropy_coeff=0.01", "set it to 0"],
    f"{ACTOR}.fsdp_config.qat.enable=true": [f"{ACTOR}.fsdp_config.qat.enable=True", "set it to False"],
    "trainer.critic_warmup=3": ["trainer.critic_warmup=3", "set it to 0"],
    "+trainer.v1.sync.parameter_sync_step=2": ["trainer.v1.sync.parameter_sync_step=2", "set it to 1"],
    "+algorithm.gdpo_reward_keys=[acc]": ["algorithm.gdpo_reward_keys=['acc']", "leave it out"],
    f"{ACTOR}.clip_ratio=0.3": [f"{ACTOR}.clip_ratio=0.3", "leave it at 0.2", "clip_ratio_low"],
    "custom_reward_function.path=reward.py": ["custom_reward_function.path", "set reward.custom_reward_function"],
    f"{REF}.log_prob_use_dynamic_bsz=false": [f"{REF}.log_prob_use_dynamic_bsz=False", "set it to True"],
    f"{REF}.log_prob_micro_batch_size_per_gpu=2": ["has no effect", f"set {REF}.log_prob_max_token_len_per_gpu if"],
    f"{REF}.log_prob_micro_batch_size=2": ["has no effect", f"set {REF}.log_prob_max_token_len_per_gpu if"],
    f"+{ROLLOUT}.engine_kwargs.vllm.logprobs_mode=raw_logprobs": [
        "vllm.logprobs_mode=raw_logprobs",
        "set it to processed",
    ],
    f"+{ROLLOUT}.engine_kwargs.vllm={{logprobs-mode:raw_logprobs}}": ["vllm.logprobs-mode=raw", "set it to processed"],
    f"{ROLLOUT}.enable_chunked_prefill=true": [f"{ROLLOUT}.enable_chunked_prefill=True", "set it to false"],
    f"+{ROLLOUT}.engine_kwargs.vllm.enable-chunked-prefill=true": [
        "vllm.enable-chunked-prefill=True",
        "set it to false",
    ],
    "algorithm.rollout_correction.rollout_rs=token_k1": ["rollout_rs=token_k1", "set it to null"],
    "algorithm.rollout_correction.rollout_rs_threshold=2": ["rollout_rs_threshold=2 has no effect", "leave it at null"],
    "~algorithm.rollout_correction.rollout_is": ["rollout_correction.rollout_is is missing", "set it to token"],
    f"{REF}=null": [f"{REF} is null or missing", "set method=grpo"],
    "algorithm.rollout_correction=null": ["set algorithm.rollout_correction.rollout_is=null"],
    f"~{ACTOR}.policy_loss": [f"{ACTOR}.policy_loss.loss_mode is missing", "set it to srpo"],
    f"~{ACTOR}.policy_loss.loss_mode": [f"{ACTOR}.policy_loss.loss_mode is missing", "set it to srpo"],
    f"~{REF}.fsdp_config.forward_only": [f"{REF}.fsdp_config.forward_only is missing", "set it to True"],
    f"{ACTOR}.ppo_mini_batch_size=0": [f"{ACTOR}.ppo_mini_batch_size=0", "a whole number of at least 1"],
    "data.train_batch_size=0": ["data.train_batch_size=0", "a whole number of at least 1"],
    f"{ROLLOUT}.n=8.5": [f"{ROLLOUT}.n=8.5", "a whole number of at least 1"],
    f"{ROLLOUT}.agent.agent_loop_manager_class=null": ["agent_loop_manager_class=null", "group_manager.GroupManager"],
    f"~{ROLLOUT}.agent.agent_loop_manager_class": ["manager_class is missing", "group_manager.GroupManager"],
    "model_engine=megatron": ["model_engine=megatron", "set it to dp"],
}


@pytest.mark.parametrize("override", WALKED_AROUND)
def test_no_way_around(override):
    with pytest.raises(ValueError) as error:
        check(compose_config([override]))
    assert all(part in str(error.value) for part in WALKED_AROUND[override])


def test_the_actor_may_take_rows_where_the_teacher_takes_tokens():
    """verl's own default would give the teacher what the actor has."""
    rows = [f"{ACTOR}.ppo_micro_batch_size_per_gpu=4", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=4"]
    config = compose_config([f"{ACTOR}.use_dynamic_bsz=false", *rows])
    assert check(config) and OmegaConf.select(config, f"{REF}.log_prob_use_dynamic_bsz") is True


def test_the_teacher_is_sharded_as_the_actor_is():
    """One setting moves both; before, the second had to follow by hand."""
    config = compose_config([f"{ACTOR}.fsdp_config.fsdp_size=4"])
    assert check(config) and OmegaConf.select(config, f"{REF}.fsdp_config.fsdp_size") == 4


def test_inside_hydras_own_main(tmp_path):
    """The entry point checks inside hydra.main, where nothing more can be composed."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "srpo_recipe.main", f"run.root={tmp_path}", "algorithm.gamma=0.9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Configuration error: algorithm.gamma=0.9 has no effect here: leave it at 1.0" in done.stderr


@pytest.mark.parametrize("key", UNREAD_IN_SYNC)
def test_settings_of_asynchronous_rollouts_are_read_where_there_are_any(key):
    """And the trainer that is refused by name says why."""
    key = f"{key}.num_warmup_batches" if key.endswith("colocate_async") else key
    value = "wait" if key.endswith("strategy") else 2
    mode = "trainer.v1.trainer_mode=srpo_colocate_async"
    assert check(composed(*BASE, mode, f"{key}={value}"))
    with pytest.raises(ValueError, match="has no effect here.*srpo_colocate_async"):
        check(composed(*BASE, f"{key}={value}"))
    with pytest.raises(ValueError, match="separate_async.*transfer engine"):
        check(composed(*BASE, "trainer.v1.trainer_mode=separate_async"))
