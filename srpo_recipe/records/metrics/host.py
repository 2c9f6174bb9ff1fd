"""verl's metrics that a run keeps, under verl's names, and those that it leaves out."""

from srpo_recipe.records.metrics.table import SAME, Dropped, Metric, Section

ROLLOUTS, ALL_TOKENS, STEP = "rollouts of the step", "tokens of the step, prompts included", "the step"
SPREAD = "{mean,max,min}"

UPDATE = Section(
    "Update",
    "",
    (
        Metric(
            "actor/grad_norm", "norm", "L2 norm of the gradient before clipping", "optimiser steps of the batch", SAME
        ),
        Metric("actor/lr", "rate", "learning rate of the next step: the first step of a warm-up has 0", STEP, SAME),
        Metric("actor/entropy", "nats", "mean H of the student; with srpo.old_policy=pass", "response tokens", SAME),
        Metric(
            "actor/perf/max_memory_{allocated,reserved}_gb",
            "GiB",
            "peak memory of a rank on its device since the start; on a CPU the process's resident memory",
            "optimiser steps of the batch, one rank",
            SAME,
        ),
        Metric("actor/perf/cpu_memory_used_gb", "GiB", "memory in use on the machine", "one rank's machine", SAME),
    ),
)

LENGTHS = Section(
    "Lengths and turns",
    "",
    (
        Metric(f"response_length/{SPREAD}", "tokens", "length of a response, tools' answers included", ROLLOUTS, SAME),
        Metric(f"prompt_length/{SPREAD}", "tokens", "length of the student's prompt", ROLLOUTS, SAME),
        Metric("response/aborted_ratio", "share", "the response has no token", ROLLOUTS, SAME),
        Metric(
            f"num_turns/{SPREAD}",
            "turns",
            "messages from the user's on: 2 for a question and its answer",
            ROLLOUTS,
            SAME,
        ),
        Metric(
            "global_seqlen/{min,max,mean,minmax_diff}",
            "tokens",
            "tokens of a rank's share before rows are dealt evenly",
            "ranks",
            SAME,
        ),
        Metric("global_seqlen/balanced_{min,max}", "tokens", "tokens of a rank's share afterwards", "ranks", SAME),
    ),
)

OURS = ("route", "samples")
STAGES = {
    "gen": "waiting for rollouts and their verification",
    "route": "reading the rollouts, routing, the teacher's prompts",
    "old_log_prob": "the pass before the update, with srpo.old_policy=pass",
    "ref": "the self-teacher's pass",
    "adv": "advantages",
    "update_actor": "optimiser steps, the EMA included",
    "samples": "writing RUN/samples, a part of update_actor",
    "update_weights": "new weights to the rollout engine",
    "save_checkpoint": "a checkpoint",
    "step": "all of the above",
    "testing": "a validation, after the step",
}

TIME = Section(
    "Time",
    "Wall clock in the trainer.",
    (
        *(
            Metric(f"timing_s/{name}", "s", meaning, STEP, "" if name in OURS else SAME)
            for name, meaning in STAGES.items()
        ),
        Metric(
            "timing_per_token_ms/{gen,ref,adv,update_actor}",
            "ms a token",
            "timing_s / tokens; gen: of the responses alone. ref counts all rollouts, also those that no teacher scored",
            ALL_TOKENS,
            SAME,
        ),
        Metric("perf/time_per_step", "s", "timing_s/step", STEP, SAME),
        Metric("perf/total_num_tokens", "tokens", "prompts and responses, padding rows included", STEP, SAME),
        Metric("perf/throughput", "tokens / s", "total_num_tokens / (time_per_step ranks)", STEP, SAME),
        Metric(
            "perf/mfu/actor",
            "share",
            "verl's estimate of the student's update in FLOP/s over the device's peak; on a CPU the peak is a constant of verl's",
            "optimiser steps of the batch",
            SAME,
        ),
    ),
)

TRAINING = Section(
    "Progress, and the rollout engine against the trainer",
    "The second half is written with srpo.old_policy=pass (GRPO's default here), where a pass before the update gives logp_old. "
    "With srpo.old_policy=update, `actor/policy/importance` and `actor/policy/rollout_probs_diff` tell the same. x is "
    "logp_old - logp_rollout of a token; rho is exp(x), cut as rollout_is says; ppl is exp(-mean logp) of a response.",
    (
        Metric("training/global_step", "steps", "the step", STEP, SAME),
        Metric("training/epoch", "epochs", "passes over the data so far", STEP, SAME),
        Metric(
            "training/rollout_failure/evicted_samples",
            "groups",
            "failed and replaced, with trainer.v1.sampler.sync_refill_failed_groups",
            STEP,
            SAME,
        ),
        Metric(
            "training/off_policy/evicted_samples",
            "groups",
            "older than trainer.v1.sampler.max_off_policy_threshold and replaced, where rollouts cross updates",
            STEP,
            SAME,
        ),
        Metric(
            "training/off_policy/evicted_samples_staleness/{mean,max,min}",
            "updates",
            "how old those were",
            "groups that were replaced",
            SAME,
        ),
        Metric(
            "training/rollout_probs_diff_{mean,max,std}",
            "probability",
            "abs(p_old - p_rollout)",
            "response tokens",
            SAME,
        ),
        Metric(
            "training/rollout_actor_probs_pearson_corr",
            "no unit",
            "correlation of p_old and p_rollout",
            "response tokens",
            SAME,
        ),
        Metric("rollout_corr/rollout_is_{mean,std,max,min}", "no unit", "rho", "response tokens", SAME),
        Metric(
            "rollout_corr/rollout_is_ratio_fraction_{high,low}",
            "share",
            "exp(x) beyond a threshold",
            "response tokens",
            SAME,
        ),
        Metric(
            "rollout_corr/rollout_is_eff_sample_size", "share", "1 / mean((rho / mean rho)^2)", "response tokens", SAME
        ),
        Metric("rollout_corr/rollout_is_seq_{mean,std,max,min}", "no unit", "mean rho of a response", ROLLOUTS, SAME),
        Metric("rollout_corr/rollout_is_seq_max_deviation", "no unit", "largest abs(mean rho - 1)", ROLLOUTS, SAME),
        Metric(
            "rollout_corr/rollout_is_seq_fraction_{high,low}",
            "share",
            "mean exp(x) of a response beyond a threshold",
            ROLLOUTS,
            SAME,
        ),
        Metric(
            "rollout_corr/rollout_is_batch_norm_factor",
            "no unit",
            "mean rho, with rollout_is_batch_normalize",
            "response tokens",
            SAME,
        ),
        Metric(
            "rollout_corr/rollout_is_oob_ratio",
            "share",
            "rho set to 0, with two thresholds (0.5_2)",
            "response tokens",
            SAME,
        ),
        Metric("rollout_corr/kl", "nats", "mean(-x)", "response tokens", SAME),
        Metric("rollout_corr/k3_kl", "nats", "mean(exp(x) - x - 1)", "response tokens", SAME),
        Metric(
            "rollout_corr/{training,rollout}_ppl", "no unit", "mean ppl by the trainer, by the engine", ROLLOUTS, SAME
        ),
        Metric("rollout_corr/{training,rollout}_log_ppl", "nats", "mean log ppl", ROLLOUTS, SAME),
        Metric(
            "rollout_corr/{log_ppl_diff,log_ppl_abs_diff,log_ppl_diff_max,log_ppl_diff_min}",
            "nats",
            "log ppl by the trainer less that by the engine: mean, mean abs, largest, smallest",
            ROLLOUTS,
            SAME,
        ),
        Metric("rollout_corr/ppl_ratio", "no unit", "mean(ppl by the trainer / ppl by the engine)", ROLLOUTS, SAME),
        Metric("rollout_corr/chi2_token", "no unit", "mean(exp(x)^2) - 1", "response tokens", SAME),
        Metric("rollout_corr/chi2_seq", "no unit", "mean(exp(2 sum x)) - 1", ROLLOUTS, SAME),
    ),
)

SECTIONS = (UPDATE, LENGTHS, TIME, TRAINING)

CRITIC = "there is no critic"
DROPPED = (
    Dropped("critic/{score,rewards}/mean", CRITIC, "route/reward"),
    Dropped("critic/{score,rewards}/{max,min}", CRITIC),
    Dropped(
        "critic/{advantages,returns}/{mean,max,min}", f"{CRITIC}, and rows on both routes are mixed", "RUN/samples"
    ),
    Dropped(
        "{response,prompt}_length/clip_ratio",
        "counts the rows that are as long as the step's longest, cut or not",
        "reward/truncated",
    ),
    Dropped(
        "response_length_non_aborted/{mean,max,min,clip_ratio}", "without the empty responses", "response/aborted_ratio"
    ),
    Dropped("training/num_turns/{mean,max,min}", "the same once more", "num_turns/mean"),
    Dropped("training/rollout_probs_diff_valid", "1 in every step"),
    Dropped(
        "training/off_policy/{trajectory_spans,trajectory_staleness,trajectory_staleness_worst}/{mean,max,min}",
        "says it in other words, where rollouts cross updates",
        "rollout/staleness",
    ),
)
