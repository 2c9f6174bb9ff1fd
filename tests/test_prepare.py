"""What the driver fills into a run's config before anything starts."""

import pytest

from srpo_recipe.run.prepare import fill
from srpo_recipe.settings.compose import compose_config

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
