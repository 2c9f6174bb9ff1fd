"""What a step is made of, in units of F: one forward pass of one token of the student's sequences, the output layer included.

A backward pass is 2 F: 1 for the gradients of what the layers are given, 1 for those of the weights. With LoRA F includes the
adapter, and the second part is the adapter's share alone, since the base has no gradient. Computing a checkpointed layer again is
1 F. The teacher's sequence is longer than the student's, by the demonstration, and only rows on its route have one. Attention's
share that grows with the square of the length is left out, and so is the rollout: decoding reads all weights for every token, so
its time is not F's.
"""

from dataclasses import dataclass

from srpo_recipe.plan.setup import Setup


@dataclass(frozen=True)
class Expectation:
    """Mean lengths in tokens, and the share of rollouts on the self-teacher's route. From the run's own log once it runs."""

    prompt: float
    response: float
    routed: float


def composition(setup: Setup, expected: Expectation, trained_share: float = 1.0) -> dict[str, float]:
    """F a token by part of the step; the parts add up to the step without the rollout.

    trained_share: of the numbers that a token is multiplied with, those that have a gradient.
    """
    student = expected.prompt + expected.response
    shown = min(expected.prompt + expected.response, setup.teacher_prompt)  # a correct sibling is about as long
    parts = {
        "log-prob pass": 0.0 if setup.one_forward else 1.0,
        "self-teacher": expected.routed * (shown + expected.response) / student if setup.teacher else 0.0,
        "update, forward": 1.0,
        "update, computed again": 1.0 if setup.checkpointing else 0.0,
        "update, backward": 1.0 + trained_share,
    }
    return parts


def tokens_of_step(setup: Setup, expected: Expectation) -> float:
    """Student tokens of a whole batch, prompts included."""
    return setup.prompts * setup.rollouts * (expected.prompt + expected.response)


def in_flight(setup: Setup, kv_bytes: float, bytes_per_token: float) -> dict[str, float]:
    """What one rollout engine is asked for at once, and what its cache holds."""
    rows = setup.prompts * setup.rollouts / setup.engines
    length = setup.prompt + setup.response
    capacity = kv_bytes / bytes_per_token
    return {
        "rollouts an engine": rows,
        "running at once": min(rows, setup.max_sequences),
        "cache in tokens": capacity,
        "longest rollouts that fit": capacity / length,
        "tokens in flight at most": min(rows, setup.max_sequences) * length,
    }


def spread(setup: Setup) -> str | None:
    """Why the batch cannot be spread over the ranks, with the fix; None when it can."""
    for name, prompts in (
        ("data.train_batch_size", setup.prompts),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", setup.mini_batch),
    ):
        rollouts = prompts * setup.rollouts
        if rollouts % setup.shares:
            receivers = f"{setup.shares} groups of ranks" if setup.split > 1 else f"{setup.world} ranks"
            return (
                f"{name}={prompts} x {setup.rollouts} rollouts = {rollouts} cannot be dealt to {receivers}: "
                "choose a multiple, with data.train_batch_size, method.optimizer_steps or actor_rollout_ref.rollout.n"
            )
    if setup.world % setup.tensor_parallel:
        return (
            f"{setup.world} ranks do not divide into vLLM engines of {setup.tensor_parallel}: "
            "change actor_rollout_ref.rollout.tensor_model_parallel_size"
        )
    return None
