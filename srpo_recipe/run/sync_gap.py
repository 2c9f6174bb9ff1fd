"""Whether the rollout engine still has the actor's weights: both give a probability to every sampled token."""

from collections.abc import Mapping

# with srpo.old_policy=update, and verl's of a pass of its own
GAPS = ("actor/policy/rollout_probs_diff", "training/rollout_probs_diff_mean")

FAR = """\
after step {step} the rollout engine's probabilities of the tokens that it sampled differ from the actor's by {gap:.3f} on
the mean, more than srpo.sync_gap={bound:g}. Either its weights do not follow the actor's (an adapter that is not loaded, a
weight sync that changes nothing: see vLLM's log in RUN/logs), or the two compute differently (quantised weights, another
dtype, another model). Where that is meant, raise srpo.sync_gap; null never ends a run."""


def check(metrics: Mapping[str, float], bound: float | None, step: int) -> None:
    """Raise RuntimeError where the two are further apart than `bound`. metrics: of the step, under their final names."""
    gap = next((metrics[key] for key in GAPS if key in metrics), None)
    if bound is not None and gap is not None and not gap <= bound:
        raise RuntimeError(FAR.format(step=step, gap=gap, bound=bound))
