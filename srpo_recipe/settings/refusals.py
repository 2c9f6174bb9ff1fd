"""What verl's config can say and this method cannot do, as tables; rules.py walks them on the resolved config.

A key that is not listed here works as in verl or does not reach the loss: tests/test_verl_settings.py sorts every key of
verl's config into one of the three, and fails for one that is new.
"""

from typing import Any, NamedTuple

ACTOR, REF, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "ref", "rollout", "model"))
CORRECTION = "algorithm.rollout_correction"

OLD_NAME = "verl's older name of actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
OWN_ADAPTER = "an adapter starts at zero here, student and self-teacher alike"
PADS = "the logits of a packed row are found by their place, which padding moves"
SKIPS = "verl's synchronous trainer reads skip.rollout_tq"
LOGITS = "the loss reads the logits, and these kernels make none"
QUANTISED = "the EMA teacher would average weights that the student does not compute with"
SAMPLED = "the rollout correction compares with what was sampled from"
CRITIC = "the advantage is the reward minus its group's mean"


class Key(str):
    """In `wanted`: the value that another key has."""


class Refusal(NamedTuple):
    """A key, the values that it may have (the first is offered as the fix), and why no other.

    An absent key is refused too: the default of verl's dataclasses is often another than that of verl's YAML. may_be_absent:
    the YAML does not have the key, and without it the run is as wanted.
    """

    key: str
    wanted: tuple[Any, ...]
    why: str
    may_be_absent: bool = False


# Sections that are read, with what does the thing for which one would set them to null.
SECTIONS = {
    **dict.fromkeys(("algorithm", "data", "reward", "trainer", ACTOR, ROLLOUT, MODEL), ""),
    CORRECTION: f"{CORRECTION}.rollout_is=null",
    REF: "method=grpo, which has no teacher",
}

# The trainers that route, each with verl's own of its kind.
TRAINER_MODES = ("srpo", "srpo_colocate_async")
TRAINERS = (
    f"{' and '.join(TRAINER_MODES)} are the trainers that route; verl's separate_async needs a transfer engine between trainer "
    "and rollouts, and swaps its weights between optimiser steps, which the teacher's average would follow"
)
REFUSALS = (
    Refusal(f"{ROLLOUT}.name", ("vllm",), "the seeded rollouts and the EMA's weights are tried with vLLM alone"),
    Refusal(
        "ray_kwargs.ray_init.runtime_env.worker_process_setup_hook",
        (None,),
        "the run's processes get the key of their data queue there",
        may_be_absent=True,
    ),
    Refusal("model_engine", ("dp",), "teacher and student are verl's FSDP engines"),
    Refusal("trainer.use_v1", (True,), "the method is a trainer of the kind that verl calls v1"),
    Refusal("trainer.v1.trainer_mode", TRAINER_MODES, TRAINERS),
    *(
        Refusal(f"trainer.v1.{mode}.parameter_sync_step", (1,), "a batch is routed as a whole", may_be_absent=True)
        for mode in ("sync", "colocate_async")
    ),
    Refusal(
        "trainer.critic_warmup", (0,), "there is no critic to wait for, and steps without an update would be counted"
    ),
    Refusal("critic.enable", (False, None), CRITIC),
    Refusal("algorithm.adv_estimator", ("srpo",), "its mean runs over the full group"),
    Refusal("algorithm.use_kl_in_reward", (False,), "the method has no KL term"),
    Refusal("algorithm.filter_groups.enable", (False,), "the routes need the groups that it would drop"),
    Refusal(f"{CORRECTION}.bypass_mode", (False,), "it takes the rollout engine's log-probs; choose srpo.old_policy"),
    Refusal(f"{CORRECTION}.rollout_rs", (None,), "the method with rollouts rejected is not tried here"),
    Refusal(
        "distillation.enabled",
        (False,),
        "verl's distillation would take the loss's place; the self-teacher is srpo.route",
    ),
    Refusal("reward.reward_model.enable", (False,), "rewards come with the rollouts, from a verifier or a function"),
    Refusal("reward.reward_model.enable_resource_pool", (False,), "no reward model is run"),
    *(Refusal(f"skip.{kind}.enable", (False,), SKIPS) for kind in ("rollout", "async_rollout")),
    Refusal(f"{ACTOR}.strategy", ("fsdp2",), "the EMA pairs the shards of FSDP2"),
    Refusal(f"{ACTOR}.fsdp_config.strategy", ("fsdp2", "fsdp"), "verl takes actor.strategy for it"),
    Refusal(f"{ACTOR}.fsdp_config.forward_only", (False,), "the actor is trained"),
    Refusal(f"{ACTOR}.policy_loss.loss_mode", ("srpo",), "it is the routed loss"),
    Refusal(f"{ACTOR}.loss_agg_mode", ("token-mean",), "choose srpo.average instead"),
    Refusal(f"{ACTOR}.use_kl_loss", (False,), "the method has no KL term"),
    Refusal(f"{ACTOR}.entropy_coeff", (0,), "the method has no entropy term"),
    Refusal(f"{ACTOR}.calculate_entropy", (False,), "the update makes no entropy; the log has that of the samples"),
    Refusal(
        f"{ACTOR}.calculate_sum_pi_squared", (False,), "the update does not make it, and no estimator here asks for it"
    ),
    Refusal(f"{ACTOR}.optim.warmup_style", (None,), "verl's older name of lr_scheduler_type, over which it goes"),
    Refusal(f"{ACTOR}.ulysses_sequence_parallel_size", (1,), OLD_NAME),
    Refusal(f"{ACTOR}.pad_to_length", (False,), PADS),
    Refusal(f"{ACTOR}.fsdp_config.pad_to_length", (False,), PADS),
    Refusal(f"{ACTOR}.qat.enable", (False,), QUANTISED),
    Refusal(f"{ACTOR}.fsdp_config.qat.enable", (False,), QUANTISED),
    Refusal(f"{ACTOR}.checkpoint.async_save", (False,), "a checkpoint is whole when the teacher is in it"),
    Refusal(f"{MODEL}.use_fused_kernels", (False,), LOGITS),
    Refusal(f"{ACTOR}.use_fused_kernels", (False,), LOGITS),
    Refusal(f"{ACTOR}.use_remove_padding", (Key(f"{MODEL}.use_remove_padding"),), "verl reads the model's"),
    Refusal(f"{ACTOR}.rollout_n", (Key(f"{ROLLOUT}.n"),), "they are the same number"),
    Refusal(f"{MODEL}.lora_adapter_path", (None,), OWN_ADAPTER),
    Refusal(f"{MODEL}.lora.adapter_path", (None,), OWN_ADAPTER),
    Refusal(f"{MODEL}.lora.rank", (0,), f"verl's FSDP engine reads {MODEL}.lora_rank"),
    Refusal(f"{MODEL}.mtp.enable", (False,), "the loss has no part for heads that predict several tokens"),
    Refusal(f"{ROLLOUT}.mtp.enable", (False,), "the loss has no part for heads that predict several tokens"),
    Refusal(f"{ROLLOUT}.qat.enable", (False,), QUANTISED),
    Refusal(
        f"{ROLLOUT}.full_determinism",
        (False,),
        "verl would name all requests alike, which then go to one engine; each rollout has a seed of its own already",
    ),
    Refusal(f"{ROLLOUT}.do_sample", (True,), "verl samples all the same; choose a temperature"),
    Refusal(f"{ROLLOUT}.logprobs_mode", ("processed_logprobs",), SAMPLED),
    *(
        # verl's arguments for vLLM, and these after them; vLLM takes either spelling, and the last one
        Refusal(f"{ROLLOUT}.engine_kwargs.vllm.{name}", ("processed_logprobs", None), SAMPLED, may_be_absent=True)
        for name in ("logprobs_mode", "logprobs-mode")
    ),
    Refusal(
        f"{ROLLOUT}.agent.agent_loop_manager_class",
        ("srpo_recipe.training.group_manager.GroupManager",),
        "its workers seed every rollout, count rewards that are not finite, and can validate greedily",
    ),
    Refusal(f"{ROLLOUT}.enable_rollout_routing_replay", (False,), "the teacher would not follow the recorded experts"),
    Refusal(
        f"{ROLLOUT}.moe_load_balance_metrics_interval", (0,), "it counts the experts that routing replay would record"
    ),
    Refusal(f"{ROLLOUT}.log_prob_use_dynamic_bsz", (Key(f"{ACTOR}.use_dynamic_bsz"),), "verl wants them alike"),
    Refusal(f"{ROLLOUT}.prompt_length", (Key("data.max_prompt_length"),), "they are the same number"),
    Refusal(f"{ROLLOUT}.response_length", (Key("data.max_response_length"),), "they are the same number"),
)

# Asked where there is a teacher: verl's reference model is it.
TEACHER_REFUSALS = (
    Refusal(f"{REF}.strategy", ("fsdp2",), "the EMA pairs the shards of FSDP2"),
    Refusal(f"{REF}.fsdp_config.strategy", ("fsdp2", "fsdp"), "verl takes ref.strategy for it"),
    Refusal(f"{REF}.fsdp_config.forward_only", (True,), "the teacher is not trained"),
    Refusal(
        f"{REF}.fsdp_config.model_dtype", ("fp32", "float32", None), "smaller types round the steps of the EMA away"
    ),
    Refusal(f"{REF}.fsdp_config.fsdp_size", (Key(f"{ACTOR}.fsdp_config.fsdp_size"),), "the EMA pairs equal shards"),
    Refusal(f"{REF}.fsdp_config.optimizer_offload", (False,), "the teacher has no optimiser"),
    Refusal(f"{REF}.ulysses_sequence_parallel_size", (1,), OLD_NAME),
    Refusal(
        f"{REF}.fsdp_config.ulysses_sequence_parallel_size",
        (Key(f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"),),
        "the teacher's states lie on the ranks of the student's groups",
    ),
    Refusal(f"{REF}.pad_to_length", (False,), PADS),
    Refusal(f"{REF}.fsdp_config.pad_to_length", (False,), PADS),
    Refusal(f"{REF}.fsdp_config.qat.enable", (False,), QUANTISED),
    Refusal(
        f"{REF}.log_prob_use_dynamic_bsz",
        (True,),
        f"the teacher's pass takes so many tokens at a time as {REF}.log_prob_max_token_len_per_gpu says",
    ),
    Refusal(f"{REF}.rollout_n", (Key(f"{ROLLOUT}.n"),), "they are the same number"),
)

# Keys and sections that nothing reads here, with the key that does what was perhaps wanted. verl's own value passes, and no
# other: a setting without an effect would be believed.
UNREAD = {
    "algorithm.gamma": "",
    "algorithm.lam": "",
    "algorithm.kl_penalty": "",
    "algorithm.kl_ctrl": "",
    "algorithm.use_pf_ppo": "",
    "algorithm.pf_ppo": "",
    "algorithm.filter_groups": "",
    "algorithm.gdpo_reward_keys": "",
    "algorithm.gdpo_reward_weights": "",
    f"{CORRECTION}.loss_type": "",
    f"{CORRECTION}.rollout_rs_threshold": "",
    "trainer.v1.separate_async": "",
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward",
    "sandbox_fusion": "reward.sandbox_fusion",
    "actor_rollout_ref.hybrid_engine": "",
    f"{ACTOR}.clip_ratio": f"{ACTOR}.clip_ratio_low and clip_ratio_high",
    f"{ACTOR}.tau_pos": "",
    f"{ACTOR}.tau_neg": "",
    f"{ACTOR}.freeze_vision_tower": "",
    f"{ACTOR}.policy_loss.clip_cov_ratio": "",
    f"{ACTOR}.policy_loss.clip_cov_lb": "",
    f"{ACTOR}.policy_loss.clip_cov_ub": "",
    f"{ACTOR}.policy_loss.kl_cov_ratio": "",
    f"{ACTOR}.policy_loss.ppo_kl_coef": "",
    f"{ACTOR}.policy_loss.dro_beta": "",
    f"{ACTOR}.policy_loss.rollout_correction": CORRECTION,
    f"{ACTOR}.loss_scale_factor": "srpo.average",
    f"{ACTOR}.kl_loss_coef": "",
    f"{ACTOR}.kl_loss_type": "",
    f"{ACTOR}.use_prefix_grouper": "",
    f"{ACTOR}.use_rollout_log_probs": "srpo.old_policy",
    f"{ACTOR}.use_torch_compile": f"{ACTOR}.fsdp_config.use_torch_compile",
    f"{ACTOR}.grad_clip": f"{ACTOR}.optim.clip_grad",
    f"{ACTOR}.optim.total_training_steps": "trainer.total_training_steps",
    f"{ACTOR}.ppo_micro_batch_size": f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    f"{ACTOR}.ppo_infer_micro_batch_size_per_gpu": f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
    f"{ACTOR}.ppo_infer_max_token_len_per_gpu": f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
    **{
        f"{part}.fsdp_config.{key}": instead
        for part in (ACTOR, REF)
        for key, instead in {
            "dtype": f"{part}.fsdp_config.mixed_precision.param_dtype",
            "router_replay": "",
            "turbo_config": "",
            "use_orig_params": "",
            "wrap_policy.min_num_params": "",
        }.items()
    },
    f"{REF}.use_torch_compile": f"{REF}.fsdp_config.use_torch_compile",
    f"{REF}.log_prob_micro_batch_size": f"{REF}.log_prob_max_token_len_per_gpu",
    f"{REF}.log_prob_micro_batch_size_per_gpu": f"{REF}.log_prob_max_token_len_per_gpu",
    f"{MODEL}.tiled_mlp": "",
    f"{ROLLOUT}.log_prob_micro_batch_size": f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
    f"{ROLLOUT}.nnodes": "trainer.nnodes",
    f"{ROLLOUT}.multi_turn.enable": f"{ROLLOUT}.agent.default_agent_loop",
    **{
        f"{section}.{name}": ""
        for section, names in {
            "actor_rollout_ref": "nccl_timeout",
            "data": "return_raw_input_ids return_raw_chat return_full_prompt return_multi_modal_inputs reward_fn_key",
            ROLLOUT: (
                "checkpoint_manager_class layer_name_map moe_tensor_parallel_size multi_stage_wake_up sglang_engine_mode "
                "skip_tokenizer_init standalone_gpu_memory_utilization agent.custom_async_server "
                "multi_turn.num_repeat_rollouts multi_turn.tokenization_sanity_check_mode "
                "multi_turn.use_inference_chat_template"
            ),
            "trainer": "balance_batch esi_redundant_time",
        }.items()
        for name in names.split()
    },
    f"{ROLLOUT}.over_sample_rate": "",
    f"{ROLLOUT}.repetition_penalty": "",
}

# The same of the synchronous trainer.
UNREAD_IN_SYNC = {
    "trainer.v1.colocate_async.num_warmup_batches": "trainer.v1.trainer_mode=srpo_colocate_async",
    "trainer.v1.sampler.max_off_policy_threshold": "trainer.v1.trainer_mode=srpo_colocate_async",
    "trainer.v1.sampler.max_off_policy_strategy": "trainer.v1.trainer_mode=srpo_colocate_async",
}
