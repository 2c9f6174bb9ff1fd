"""The table of the settings that do not change a run's numbers, and those whose value lies in files (counted.py reads it)."""

_ENGINE = "profiler entropy_from_logits_with_chunking entropy_from_logits_chunk_size entropy_checkpointing"
_FSDP = (
    "param_offload optimizer_offload offload_policy reshard_after_forward forward_prefetch use_torch_compile "
    "use_no_sync_for_gradient_accumulation entropy_from_logits_with_chunking entropy_from_logits_chunk_size "
    "entropy_checkpointing"
)

# Section -> the settings below it that do not change what is computed (beyond rounding): logs, files, memory, speed, waiting.
# A name stands for all that is below it.
NEUTRAL = {
    # of a task everything reaches the run through other sections and through its files; the sections after it are refused or
    # have no effect here (settings/refusals.py)
    "": "run task critic distillation reward_model custom_reward_function sandbox_fusion transfer_queue global_profiler skip "
    "ray_kwargs",
    "srpo": "logits_rows chunk_megabytes poll_seconds stall_seconds collapse_ratio sync_gap",
    "srpo.verifier": "processes limits",
    "trainer": (
        "project_name experiment_name logger log_val_generations rollout_data_dir validation_data_dir default_local_dir "
        "default_hdfs_dir save_freq test_freq val_before_train val_only max_actor_ckpt_to_keep max_critic_ckpt_to_keep "
        "remove_previous_ckpt_in_save resume_mode resume_from_path del_local_ckpt_after_load esi_redundant_time "
        "checkpoint_callback_class ray_wait_register_center_timeout "
        # together they are the ranks, which count
        "nnodes n_gpus_per_node"
    ),
    "data": "use_shm filter_overlong_prompts_workers val_batch_size",
    "reward": "num_workers reward_model",
    "actor_rollout_ref": "srpo nccl_timeout",
    "actor_rollout_ref.model": "use_shm enable_gradient_checkpointing enable_activation_offload",
    "actor_rollout_ref.actor": f"{_ENGINE} ppo_max_token_len_per_gpu ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.actor.checkpoint": "save_contents save_lora_only async_save",
    "actor_rollout_ref.actor.fsdp_config": _FSDP,
    "actor_rollout_ref.ref": f"{_ENGINE} log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.ref.fsdp_config": _FSDP,
    "actor_rollout_ref.rollout": (
        "n_gpus_per_node nnodes gpu_memory_utilization enforce_eager cudagraph_capture_sizes free_cache_engine "
        "enable_sleep_mode tensor_model_parallel_size data_parallel_size pipeline_model_parallel_size max_num_batched_tokens "
        "max_num_seqs enable_chunked_prefill enable_prefix_caching scheduling_policy load_format layered_summon "
        "log_prob_max_token_len_per_gpu log_prob_micro_batch_size_per_gpu disable_log_stats multi_stage_wake_up "
        "router_config_path checkpoint_engine trace server prometheus profiler"
    ),
    "actor_rollout_ref.rollout.agent": "num_workers",
}

# More of these is more of the same run; fewer is another one.
RISING = ("trainer.total_training_steps", "trainer.total_epochs")
# Files, or lists of them. A verifier of the user's is FILE.py:function.
FILES = (
    "data.train_files",
    "data.val_files",
    "data.custom_cls.path",
    "data.tool_config_path",
    "data.function_tool_path",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
    "srpo.verifier.name",
    "srpo.route",
    "srpo.teacher.demonstration",
    "srpo.row_weight",
    "srpo.weight",
    "srpo.target",
    "srpo.advantage",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
    "actor_rollout_ref.rollout.multi_turn.function_tool_path",
)
# Folders of a model, or its names on a hub: the name counts, and the config that lies there.
MODELS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.hf_config_path",
    "actor_rollout_ref.model.tokenizer_path",
)
SEEDS = (
    "srpo.seed",
    "data.seed",
    "actor_rollout_ref.actor.data_loader_seed",
    "actor_rollout_ref.actor.fsdp_config.seed",
    "actor_rollout_ref.rollout.seed",
)
