"""Sequence parallelism: fsdp_config.ulysses_sequence_parallel_size ranks have a slice each of the same sequences."""

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.machine import PACKED_SDPA
from srpo_recipe.settings.kinds import shown
from srpo_recipe.settings.refusals import ACTOR, MODEL
from srpo_recipe.verify.settings import require

SIZE = f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"
ATTENTION = f"{MODEL}.override_config.attn_implementation"
# What verl's all-to-all stands around; with any other a token would see its own slice alone, and nothing would say so.
FLASH = ("flash_attention_2", "flash_attention_3")


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for ranks that make no groups, and for attention that does not reach over a group."""
    size = OmegaConf.select(config, SIZE)
    on_cpu = config.trainer.device == "cpu"
    attention = (
        OmegaConf.select(config, ATTENTION, default=None) or FLASH[0]
    )  # verl's own value, workers/config/model.py:185
    if attention == PACKED_SDPA:
        packed = config.actor_rollout_ref.model.use_remove_padding
        require(on_cpu, f"{ATTENTION}={PACKED_SDPA} is for a CPU: set it to {FLASH[0]}")
        require(packed, f"{ATTENTION}={PACKED_SDPA} takes packed sequences alone: set {MODEL}.use_remove_padding=true")
    if size == 1:
        return
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    require(
        ranks % size == 0,
        f"{SIZE}={size} does not divide the {ranks} rank(s) into groups: set it to a divisor of "
        "trainer.nnodes x trainer.n_gpus_per_node",
    )
    require(
        config.actor_rollout_ref.model.use_remove_padding,
        f"{SIZE}={size} splits packed sequences: set {MODEL}.use_remove_padding=true",
    )
    wanted = (PACKED_SDPA,) if on_cpu else FLASH
    require(
        attention in wanted,
        f"{SIZE}={size} with {ATTENTION}={shown(attention)}, which would see a rank's own slice alone: set it to {wanted[0]}",
    )
