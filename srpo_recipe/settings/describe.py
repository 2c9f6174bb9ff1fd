"""The table that the entry point prints: what a run will really do."""

from omegaconf import DictConfig

from srpo_recipe.settings.lora_modules import in_words
from srpo_recipe.settings.options import formula, over_mean
from srpo_recipe.settings.read import old_policy
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.settings.wire import limited


def describe(config: DictConfig, settings: SRPOConfig) -> list[tuple[str, str]]:
    """Rows of the table that the entry point prints: what this run will really do."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    mini, batch = actor.ppo_mini_batch_size, config.data.train_batch_size
    teacher = "none"
    if settings.needs_teacher:
        rate = settings.teacher.rate
        kind = "frozen" if rate == 0 else "current policy" if rate == 1 else f"EMA, rate {rate}"
        kind += ", a second adapter" if config.actor_rollout_ref.model.lora_rank else ""
        teacher = f"{kind}; demonstration {settings.teacher.demonstration}; feedback {settings.teacher.feedback}"
    verifier = str(config.reward.custom_reward_function.path or "verl's, by data_source")
    if limited(config):
        limit = f"at most {settings.verifier.time_limit:g} s" if settings.verifier.limits else "no limits"
        verifier = f"{verifier}, {config.reward.custom_reward_function.name}; {limit}"
    if settings.verifier.name is not None:
        verifier = f"{settings.verifier.name}, {settings.verifier.mode}; at most {settings.verifier.time_limit:g} s"
    distance = {0.0: "KL(teacher||student)", 1.0: "KL(student||teacher)", 0.5: "Jensen-Shannon"}
    return [
        ("route rule", settings.route + (f" (lambda {settings.mix})" if settings.route == "advantage_mix" else "")),
        ("token weight", _token_weight(settings)),
        *([("row weight", formula(settings, "row_weight"))] if settings.row_weight != "alike" else []),
        *([("target", formula(settings, "target"))] if settings.target != "teacher" else []),
        ("divergence", f"{distance.get(settings.alpha, f'alpha {settings.alpha}')}, top-{settings.top_k} + tail"),
        ("self-teacher", teacher),
        ("verifier", verifier),
        ("advantage", _advantage(config, settings)),
        ("clip", f"-{actor.clip_ratio_low} / +{actor.clip_ratio_high}"),
        (
            "old policy",
            {"update": "the update's own forward pass", "pass": "a pass before the update"}[old_policy(config)],
        ),
        ("learning rate", f"{actor.optim.lr:g}, warm-up {actor.optim.lr_warmup_steps} steps"),
        ("batch", f"{batch} prompts x {rollout.n} rollouts, {batch // mini} optimiser step(s) of {mini} prompts"),
        ("lengths", f"prompt {config.data.max_prompt_length}, response {config.data.max_response_length} tokens"),
        ("model", _model(config.actor_rollout_ref.model)),
        (
            "machine",
            f"{config.trainer.nnodes} node(s) x {config.trainer.n_gpus_per_node} rank(s), {config.trainer.device}",
        ),
    ]


def _token_weight(settings: SRPOConfig) -> str:
    if settings.weight == "confidence" and not settings.beta:
        return "uniform"
    return formula(settings, "weight") + (" / its mean over the mini-batch" if over_mean(settings) else "")


def _advantage(config: DictConfig, settings: SRPOConfig) -> str:
    of_group = "r - group mean" + (", over std" if config.algorithm.norm_adv_by_std_in_grpo else "")
    return of_group if settings.advantage == "group_mean" else f"{of_group}; {formula(settings, 'advantage')}"


def _model(model: DictConfig) -> str:
    code = ", and runs the Python that lies there (trust_remote_code)" if model.trust_remote_code else ""
    if not model.lora_rank:
        return f"{model.path}{code}"
    synced = "merged weights" if model.lora.merge else "an adapter"
    adapters = f"LoRA rank {model.lora_rank}, alpha {model.lora_alpha}, on {in_words(model)}"
    return f"{model.path}, {adapters}, to vLLM as {synced}{code}"
