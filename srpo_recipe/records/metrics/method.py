"""The method's own metrics: routing, teacher, loss, verification, held-out accuracy."""

from srpo_recipe.records.metrics.table import SAME, Metric, Section

ROLLOUTS, GROUPS = "rollouts of the step", "groups of the step"
POLICY, DISTILLED, EITHER = "tokens on the GRPO route", "tokens on the self-teacher's route", "tokens on either route"

ROUTING = Section(
    "Routing",
    "Rows that only fill up a batch are not counted. Rollouts that failed are missing from `route/rollouts`.",
    (
        Metric("route/rollouts", "rollouts", "how many arrived and take part in the step", "the step"),
        Metric("route/reward", "reward", "mean r, shaping included", ROLLOUTS, "critic/rewards/mean"),
        Metric("route/correct_share", "share", "r >= srpo.correct_threshold", ROLLOUTS),
        Metric(
            "route/teacher_available_share",
            "share",
            "a teacher's prompt can be made: a correct sibling (or, with srpo.teacher.feedback, a text of the verifier), and "
            "where the rule asks for the teacher its prompt fits",
            ROLLOUTS,
        ),
        Metric("route/distill_share", "share", "weight > 0 on the self-teacher's route", ROLLOUTS),
        Metric("route/policy_share", "share", "weight > 0 on the GRPO route", ROLLOUTS),
        Metric("route/all_wrong_groups", "share", "no rollout of the group is correct", GROUPS),
        Metric("route/all_right_groups", "share", "every rollout of the group is correct", GROUPS),
        Metric("route/rerouted", "rollouts", "lost their teacher, since its prompt does not fit", ROLLOUTS),
        Metric("route/shortened", "rollouts", "have a demonstration that was cut to fit", ROLLOUTS),
        Metric("route/response_length", "tokens", "mean length", ROLLOUTS, "response_length/mean"),
        Metric("route/response_length_policy", "tokens", "mean length; 0 for none", "rollouts on the GRPO route"),
        Metric(
            "route/response_length_distill", "tokens", "mean length; 0 for none", "rollouts on the self-teacher's route"
        ),
        Metric("route/response_length_correct", "tokens", "mean length; 0 for none", "correct rollouts"),
    ),
)

TEACHER = Section(
    "Self-teacher",
    "Methods without a teacher write the lengths as 0 and neither the rows nor the distance.",
    (
        Metric("teacher/demonstration_length", "tokens", "mean length of the sibling's response", "siblings shown"),
        Metric("teacher/prompt_length", "tokens", "mean length of its prompt", "prompts of the teacher"),
        Metric("teacher/rows_routed", "rows", "scored by the teacher", ROLLOUTS),
        Metric("teacher/rows_forwarded", "rows", "went through its forward pass, padding included", "all ranks"),
        Metric("teacher/rows_padding", "rows", "filled up the ranks' shares", "all ranks"),
        Metric(
            "actor/ema_distance",
            "no unit",
            "norm(teacher - student) / norm(student), after the step",
            "all weights of all ranks",
        ),
    ),
)

LOSS = Section(
    "Loss",
    "The symbols are those of [method/loss.py](../srpo_recipe/method/loss.py): z the route's weight, l a token's loss, rho the "
    "rollout correction, w the token's weight. Sums run over the whole mini-batch of an optimiser step, all micro-batches and "
    "ranks. With several optimiser steps a batch, means are taken over the tokens of all of them, `weight_largest` is the "
    "largest, and losses, counts and the gradient's norm are means over the optimiser steps. A mean over no token is left out. "
    "With srpo.average=sequence the loss is a mean over each rollout's tokens, then over the rollouts.",
    (
        Metric("actor/loss", "loss", "actor/pg_loss + actor/distill/loss", EITHER, SAME),
        Metric("actor/pg_loss", "loss", "sum(z_grpo rho l_grpo) / tokens on either route", EITHER, SAME),
        Metric("actor/distill/loss", "nats", "sum(z_sdpo rho w l_sdpo) / tokens on either route", EITHER),
        Metric("actor/distill/divergence", "nats", "mean l_sdpo, between student and teacher", DISTILLED),
        Metric("actor/distill/teacher_entropy", "nats", "mean H of the teacher, over the whole vocabulary", DISTILLED),
        Metric("actor/distill/weight_mean", "no unit", "mean w; 1 by construction", DISTILLED),
        Metric("actor/distill/weight_square", "no unit", "mean w^2", DISTILLED),
        Metric("actor/distill/weight_std", "no unit", "sqrt(mean w^2 - (mean w)^2)", DISTILLED),
        Metric("actor/distill/weight_largest", "no unit", "largest w", DISTILLED),
        Metric("actor/distill/token_share", "share", "on the self-teacher's route", EITHER),
        Metric("actor/distill/tokens", "tokens", "how many", DISTILLED),
        Metric("actor/policy/token_share", "share", "on the GRPO route", EITHER),
        Metric("actor/policy/tokens", "tokens", "how many", POLICY),
        Metric("actor/tokens", "tokens", "how many", EITHER),
        Metric("actor/policy/clip_fraction", "share", "the clip of the ratio is active", POLICY, "actor/pg_clipfrac"),
        Metric(
            "actor/policy/dual_clip_fraction",
            "share",
            "the bound clip_ratio_c is active",
            POLICY,
            "actor/pg_clipfrac_lower",
        ),
        Metric("actor/policy/approx_kl", "nats", "mean(logp_old - logp)", POLICY, "actor/ppo_kl"),
        Metric(
            "actor/policy/importance",
            "no unit",
            "mean rho = min(exp(logp_old - logp_rollout), rollout_is_threshold)",
            EITHER,
            "rollout_corr/rollout_is_mean",
        ),
        Metric(
            "actor/policy/entropy_of_samples",
            "nats",
            "mean(-logp) of the sampled tokens, which estimates the entropy; with srpo.old_policy=update",
            EITHER,
            "actor/entropy",
        ),
        Metric(
            "actor/policy/rollout_probs_diff",
            "probability",
            "mean abs(p - p_rollout) of the sampled tokens; with srpo.old_policy=update",
            EITHER,
            "training/rollout_probs_diff_mean",
        ),
        Metric(
            "actor/optimizer/skipped_steps", "steps", "optimiser steps without a finite gradient, skipped", "the step"
        ),
    ),
)

VERIFICATION = Section(
    "Verification",
    "`reward/unparsed` and `reward/truncated` need a verifier (srpo.verifier.name). A reward function of your own without "
    "limits (srpo.verifier.limits=false) has `reward/not_finite` alone until one of its rewards is no number.",
    (
        Metric("reward/not_finite", "rollouts", "the reward is no finite number; it counts as 0", ROLLOUTS),
        Metric("reward/timeouts", "rollouts", "the verification took too long; the reward is 0", ROLLOUTS),
        Metric("reward/crashes", "rollouts", "the verification broke; the reward is 0", ROLLOUTS),
        Metric("reward/unparsed", "rollouts", "no answer could be read in the response", ROLLOUTS),
        Metric(
            "reward/truncated",
            "rollouts",
            "the response was cut at data.max_response_length",
            ROLLOUTS,
            "response_length/clip_ratio, as a share",
        ),
        Metric(
            "rollout/generate_seconds",
            "s",
            "mean time of generation; rollouts overlap",
            "rollouts that were timed",
        ),
        Metric(
            "rollout/{staleness,staleness_largest}",
            "updates",
            "by how many the weights that it was asked for were older than the newest: 0 unless rollouts cross updates",
            ROLLOUTS,
        ),
        Metric("rollout/reward_seconds", "s", "mean time of the verification of its group", "rollouts that were timed"),
    ),
)

HELD_OUT = Section(
    "Held-out accuracy",
    "Written after a validation, for each data source (SOURCE). k is the number of samples of a question; a lost sample "
    "counts as wrong. Where the reward function gives no `acc`, `reward` stands in its place.",
    (
        Metric(
            "val-core/SOURCE/{acc,reward}/mean@K", "share", "avg@k: mean over a question's samples", "questions", SAME
        ),
        Metric(
            "val-core/SOURCE/{acc,reward}/pass@K",
            "share",
            "1 - C(n - c, k) / C(n, k) for c correct samples of n: one of k drawn without replacement is correct",
            "questions",
            "best@k, which draws with replacement and lies below",
        ),
        Metric(
            "val-core/SOURCE/{acc,reward}/maj@K",
            "share",
            "the most frequent answer is correct, ties in expectation; needs a verifier that tells the answer",
            "questions",
            "maj@k, which takes the first of a tie",
        ),
        Metric(
            "val-aux/SOURCE/{acc,reward}/{mean,pass,maj}@K/{low,high}",
            "share",
            "ends of the 95 % interval of the above",
            "bootstrap over questions",
        ),
        Metric("val-aux/SOURCE/failure/CAUSE", "share", "the verification failed by this cause", "samples"),
        Metric(
            "val-aux/SOURCE/NAME/mean",
            "the entry's",
            "mean of another number that the reward function gives",
            "samples",
        ),
        Metric(
            "val-aux/num_turns/{min,max,mean}",
            "turns",
            "messages from the user's on: 2 for a question and its answer",
            "samples",
            SAME,
        ),
    ),
)

RUN = Section(
    "Run",
    "",
    (
        Metric("step", "steps", "the line's step, 0 for the validation before training", "metrics.jsonl alone"),
        Metric("run/seconds_since_start", "s", "since the command was given", "this start of the run"),
    ),
)

SECTIONS = (ROUTING, TEACHER, LOSS, VERIFICATION, HELD_OUT, RUN)
