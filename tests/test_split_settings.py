"""Which settings of sequence parallelism are taken, and which are refused with the fix."""

import pytest

from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

SIZE = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
PACKED = "actor_rollout_ref.model.use_remove_padding"
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
GPU = ["hardware=gpu8", "model=qwen3_8b", "task=parquet", "data.train_files=a", "data.val_files=b"]
CPU = ["hardware=cpu", "trainer.n_gpus_per_node=2", f"{PACKED}=true", f"{ATTENTION}=packed_sdpa"]

# (machine, overrides, what the message says)
REFUSED = [
    (GPU, [f"{SIZE}=3"], f"{SIZE}=3 does not divide the 8 rank(s) into groups"),
    (GPU, [f"{SIZE}=16"], "does not divide the 8 rank(s)"),
    (GPU, [f"{SIZE}=2", f"{PACKED}=false"], f"set {PACKED}=true"),
    (
        GPU,
        [f"{SIZE}=2", f"+{ATTENTION}=sdpa"],
        f"with {ATTENTION}=sdpa, which would see a rank's own slice alone: set it to",
    ),
    (GPU, [f"{SIZE}=2", f"+{ATTENTION}=eager"], "set it to flash_attention_2"),
    (GPU, [f"+{ATTENTION}=packed_sdpa"], "is for a CPU: set it to flash_attention_2"),
    (GPU, [f"{SIZE}=2", "actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size=1"], "set it to 2"),
    (CPU, [f"{SIZE}=2", f"{ATTENTION}=sdpa"], "set it to packed_sdpa"),
    (CPU, [f"{SIZE}=4"], "does not divide the 2 rank(s)"),
    (CPU, [f"{PACKED}=false"], f"takes packed sequences alone: set {PACKED}=true"),
]


@pytest.mark.parametrize("machine, overrides, says", REFUSED, ids=lambda value: " ".join(value)[-60:])
def test_what_cannot_be_split_is_refused(machine, overrides, says):
    with pytest.raises(ValueError) as error:
        check(compose_config([*machine, *overrides]))
    assert says in str(error.value)


@pytest.mark.parametrize("method", ["grpo", "sdpo", "srpo", "srpo_no_dw", "advantage_mix"])
@pytest.mark.parametrize("machine", [GPU, CPU, [*GPU, f"+{ATTENTION}=flash_attention_3"]], ids=len)
def test_every_method_takes_split_sequences_and_the_teacher_is_split_alike(machine, method):
    config = compose_config([*machine, f"method={method}", f"{SIZE}=2"])
    assert check(config)
    assert config.actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size == 2
