"""What a run with LoRA can be told: lora_rank, lora_alpha, target_modules, exclude_modules and lora.merge of the model, and what
else of verl's config means another thing beside an adapter.
"""

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings import lora_modules
from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.kinds import ABSENT, leaves, shown
from srpo_recipe.settings.refusals import ACTOR, MODEL, REF, ROLLOUT, TEACHER_REFUSALS, Refusal
from srpo_recipe.verify.settings import require

LARGEST_RANK = 512  # that vLLM takes as an adapter
# vLLM multiplies B with lora_alpha / lora_rank, in the rollouts' type of numbers (vllm/lora/lora_weights.py, optimize).
LARGEST_SCALE = 1024
ALONE = f"{ACTOR}.checkpoint.save_lora_only"

# Asked where there is an adapter.
REFUSALS = (
    Refusal(
        f"{ACTOR}.fsdp_config.model_dtype",
        ("fp32", "float32", None),
        "smaller types round the steps of the EMA away; the base is computed in mixed_precision.param_dtype all the same",
    ),
    Refusal(f"{MODEL}.target_parameters", (None,), "the two adapters are paired by modules", may_be_absent=True),
    Refusal(f"{ROLLOUT}.layered_summon", (False,), "it gathers FSDP1's layers"),
)
# Without an effect where there is none.
OF_ADAPTERS = ("lora_alpha", "target_modules", "target_parameters", "exclude_modules", "lora.merge")
# Of the self-teacher's settings, those of a second model, which an adapter is not.
OF_SECOND_MODEL = f"{REF}.fsdp_config"
TEACHER = tuple(
    row
    for row in TEACHER_REFUSALS
    if not row.key.startswith(f"{OF_SECOND_MODEL}.") or row.key.endswith(".forward_only")
)
# Arguments of vLLM, and why none of them may be given; it takes dashes as well as underscores, and no- before a switch.
OF_VLLM = {
    **dict.fromkeys(
        ("enable_lora", "max_loras", "max_lora_rank"), f"verl sets it from {MODEL}.lora_rank and {MODEL}.lora.merge"
    ),
    **dict.fromkeys(
        ("lora_dtype", "lora_modules", "lora_target_modules"), "vLLM would compute with another adapter than is trained"
    ),
    "load_format": f"set {ROLLOUT}.load_format, which verl reads as well",
}


def unread(config: DictConfig) -> dict[str, str]:
    """The keys about LoRA that have no effect in this run, as rules.check_unread takes them."""
    model = config.actor_rollout_ref.model
    names = [f"lora.{name}" for name in model.lora if name not in ("merge", "rank", "adapter_path")]
    names += [] if model.lora_rank else OF_ADAPTERS
    return {f"{MODEL}.{name}": "" if model.lora_rank else f"{MODEL}.lora_rank" for name in names}


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for a rank or scale that is none, for modules that hold the output layer, and for what
    would give vLLM another model than the trained one.
    """
    _check_rank(config)
    if config.actor_rollout_ref.model.lora_rank:
        lora_modules.check(config.actor_rollout_ref.model)
    _check_checkpoint(config)
    _check_vllm(config)


def _check_rank(config: DictConfig) -> None:
    model = config.actor_rollout_ref.model
    rank, alpha, merge = model.lora_rank, model.lora_alpha, model.lora.get("merge")
    require(
        _whole(rank) and 0 <= rank <= LARGEST_RANK,
        f"{MODEL}.lora_rank={rank}: set it to a whole number from 1 to {LARGEST_RANK}, or to 0 to train all weights",
    )
    if not rank:  # what an adapter's settings say then is looked at by `unread`
        return
    largest = LARGEST_SCALE * rank
    require(
        _whole(alpha) and 1 <= alpha <= largest,
        f"{MODEL}.lora_alpha={shown(alpha)}: set it to a whole number from 1 to {largest}; an adapter counts "
        f"lora_alpha / lora_rank times, verl writes whole numbers into a checkpoint, and more than {LARGEST_SCALE} times leaves "
        "the numbers that vLLM computes with",
    )
    require(
        isinstance(merge, bool),
        f"{MODEL}.lora.merge={shown(merge)}: set it to true (vLLM gets merged weights) or false (an adapter)",
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_checkpoint(config: DictConfig) -> None:
    alone = OmegaConf.select(config, ALONE, default=False)
    require(isinstance(alone, bool), f"{ALONE}={shown(alone)}: set it to true or false")
    require(
        not alone or config.actor_rollout_ref.model.lora_rank,
        f"{ALONE}={alone} has no effect here: leave it at False, and set {MODEL}.lora_rank if that is what you mean",
    )


def _check_vllm(config: DictConfig) -> None:
    model, own = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout.load_format
    require(
        own != "dummy" or not model.lora_rank or model.lora.merge,
        f"{ROLLOUT}.load_format=dummy: set it to auto, or {MODEL}.lora.merge=true: where vLLM is sent adapters it reads the base "
        "itself, and dummy gives it random numbers to begin with",
    )
    for name, value in (OmegaConf.select(config, f"{ROLLOUT}.engine_kwargs.vllm", default=None) or {}).items():
        why = OF_VLLM.get(str(name).replace("-", "_").removeprefix("no_"))
        require(
            value is None or why is None,
            f"{ROLLOUT}.engine_kwargs.vllm.{name}={shown(value)} is not supported: leave it out ({why})",
        )


def check_second_model(config: DictConfig) -> None:
    """Of a second model's settings, which a self-teacher that is an adapter has none of, only verl's own value passes, or the
    actor's: the files in config/hardware set both.
    """
    if not config.actor_rollout_ref.model.lora_rank:
        return
    default = dict(leaves(OmegaConf.select(verl_defaults(), OF_SECOND_MODEL, default=ABSENT), OF_SECOND_MODEL))
    for key, value in leaves(OmegaConf.select(config, OF_SECOND_MODEL, default=ABSENT), OF_SECOND_MODEL):
        actors = OmegaConf.select(config, key.replace(REF, ACTOR, 1), default=ABSENT)
        fix = f"leave it at {shown(default[key])}" if key in default else "leave it out"
        same = (
            "" if actors is ABSENT or actors == default.get(key, ABSENT) else f", or at {shown(actors)} as the actor's"
        )
        require(
            value in (default.get(key, ABSENT), actors),
            f"{key}={shown(value)} has no effect here, since with {MODEL}.lora_rank the self-teacher is an adapter of the "
            f"actor's model: {fix}{same}, and set {key.replace(REF, ACTOR, 1)} if that is what you mean",
        )
