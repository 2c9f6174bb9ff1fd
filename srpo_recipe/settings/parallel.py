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
SIZES = (1, 2, 4, 8, 16, 32)


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for ranks that make no groups, and for attention that does not reach over a group."""
    size = OmegaConf.select(config, SIZE)
    on_cpu = config.trainer.device == "cpu"
    chosen = attention(config)
    if chosen == PACKED_SDPA:
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
        chosen in wanted,
        f"{SIZE}={size} with {ATTENTION}={shown(chosen)}, which would see a rank's own slice alone: set it to {wanted[0]}",
    )


def attention(config: DictConfig) -> str:
    """The attention of a run's model: as given, or verl's own value (workers/config/model.py:185)."""
    return OmegaConf.select(config, ATTENTION, default=None) or FLASH[0]


def splits(heads: int, kv_heads: int, size: int) -> bool:
    """Whether verl takes a size for a model of so many heads (models/transformers/monkey_patch.py:343)."""
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def unfit(heads: int, kv_heads: int, size: int) -> str | None:
    """Why a model of so many heads cannot be split over so many ranks, with the fix; None where it can."""
    if splits(heads, kv_heads, size):
        return None
    return (
        f"{SIZE}={size} divides neither {heads} heads nor {kv_heads} of keys and values as verl needs it: take one of "
        f"{', '.join(str(one) for one in SIZES if splits(heads, kv_heads, one))}"
    )
