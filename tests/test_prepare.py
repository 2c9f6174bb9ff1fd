"""What the driver fills into a run's config before anything starts."""

import pytest

from srpo_recipe.run import dry_run
from srpo_recipe.run.prepare import check_files, fill
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

ROLLOUT = "actor_rollout_ref.rollout"


@pytest.mark.parametrize(
    "overrides, length, tokens",
    [
        (["data.max_response_length=8000"], 8048, 8048),
        (["data.max_response_length=64"], 112, 4096),
        ([f"{ROLLOUT}.max_model_len=128", f"{ROLLOUT}.max_num_batched_tokens=64"], 128, 128),
    ],
)
def test_a_batch_has_room_for_a_prompt_that_is_taken_whole(tmp_path, overrides, length, tokens):
    """Before, a model of more positions than max_num_batched_tokens ended in verl's FrozenInstanceError, after a minute."""
    sizes = ["task.generate.train_size=16", "task.generate.test_size=4"]
    config = compose_config(["hardware=cpu", f"run.root={tmp_path}", *sizes, *overrides])
    fill(config)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.max_model_len, rollout.max_num_batched_tokens) == (length, tokens)


SPLIT = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"


def split_over(ranks: int) -> list[str]:
    model = "actor_rollout_ref.model"
    packed = [f"{model}.use_remove_padding=true", f"{model}.override_config.attn_implementation=packed_sdpa"]
    return ["hardware=cpu", f"trainer.n_gpus_per_node={ranks}", f"{SPLIT}={ranks}", *packed]


def test_heads_that_cannot_be_split_are_refused_before_anything_starts():
    """The embedded model has 4 heads, and 2 of keys and values. verl's AssertionError came in a worker."""
    config = compose_config(split_over(3))
    check(config)
    says = f"{SPLIT}=3 divides neither 4 heads nor 2 of keys and values as verl needs it: take one of 1, 2, 4"
    with pytest.raises(ValueError, match=says):
        check_files(config)
    with pytest.raises(SystemExit, match=f"Configuration error: {says}"):
        dry_run.main(split_over(3))


def test_heads_that_can_be_split_pass():
    check_files(compose_config(split_over(2)))
    check_files(compose_config(split_over(4)))
