"""Refuses combinations that verl would run, but not as the method says."""

from typing import Any

from omegaconf import DictConfig

from srpo_recipe.settings.read import read
from srpo_recipe.settings.schema import SRPOConfig, _require
from srpo_recipe.settings.wire import check as check_verifier


def check(config: DictConfig) -> SRPOConfig:
    """Refuse combinations that verl would run, but not as the method says. Returns the typed settings."""
    settings = read(config)
    actor, rollout, algorithm = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm
    model = config.actor_rollout_ref.model
    correction = algorithm.rollout_correction
    for name, value, wanted, why in (
        ("trainer.v1.trainer_mode", config.trainer.v1.trainer_mode, "srpo", "it is the trainer that routes"),
        ("algorithm.adv_estimator", algorithm.adv_estimator, "srpo", "its mean runs over the full group"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", actor.policy_loss.loss_mode, "srpo", "it is the routed loss"),
        ("actor_rollout_ref.actor.loss_agg_mode", actor.loss_agg_mode, "token-mean", "choose srpo.average instead"),
        ("actor_rollout_ref.actor.use_kl_loss", actor.use_kl_loss, False, "the method has no KL term"),
        ("algorithm.use_kl_in_reward", algorithm.use_kl_in_reward, False, "the method has no KL term"),
        ("actor_rollout_ref.model.use_fused_kernels", model.use_fused_kernels, False, "the loss reads the logits"),
        ("actor_rollout_ref.model.lora_rank", model.lora_rank, 0, "the EMA teacher averages full weights"),
        (
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
            actor.fsdp_config.ulysses_sequence_parallel_size,
            1,
            "the distillation loss does not split sequences over ranks",
        ),
    ):
        _require(value == wanted, f"{name}={value} is not supported: set it to {wanted} ({why})")
    check_verifier(config, settings.verifier)
    wait = config.run.wait_seconds
    _require(
        isinstance(wait, int | float) and wait >= 0,
        f"run.wait_seconds={wait} must be a number of seconds, 0 or more: how long to wait for a cluster's nodes",
    )
    _require(
        actor.strategy in ("fsdp", "fsdp2"), f"actor_rollout_ref.actor.strategy={actor.strategy}: use fsdp2 (or fsdp)"
    )
    if correction.bypass_mode:
        needs: tuple[tuple[str, Any, Any], ...] = (
            ("data.train_batch_size", config.data.train_batch_size, actor.ppo_mini_batch_size),
            ("actor_rollout_ref.actor.ppo_epochs", actor.ppo_epochs, 1),
            ("algorithm.rollout_correction.rollout_rs", correction.rollout_rs, None),
            ("algorithm.rollout_correction.rollout_is_batch_normalize", correction.rollout_is_batch_normalize, False),
            ("actor_rollout_ref.actor.strategy", actor.strategy if settings.needs_teacher else "fsdp2", "fsdp2"),
        )
        for name, value, wanted in needs:
            _require(
                value == wanted,
                f"{name}={value} needs the old policy's log-probs before the update: "
                "set algorithm.rollout_correction.bypass_mode=False",
            )
    if correction.rollout_is is not None:
        _require(
            correction.rollout_is == "token", "algorithm.rollout_correction.rollout_is must be token (or null for none)"
        )
        _require(
            rollout.calculate_log_probs,
            "the rollout correction needs actor_rollout_ref.rollout.calculate_log_probs=True",
        )
    _require(
        rollout.n > 1, f"actor_rollout_ref.rollout.n={rollout.n}: a group needs at least 2 rollouts to have siblings"
    )
    _require(
        config.data.train_batch_size % actor.ppo_mini_batch_size == 0,
        f"data.train_batch_size={config.data.train_batch_size} must be a multiple of "
        f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}",
    )
    if settings.needs_teacher:
        dtype = config.actor_rollout_ref.ref.fsdp_config.model_dtype
        _require(
            dtype in (None, "fp32", "float32"),
            f"actor_rollout_ref.ref.fsdp_config.model_dtype={dtype}: keep the EMA teacher in fp32, "
            "smaller types round its steps away",
        )
    return settings
