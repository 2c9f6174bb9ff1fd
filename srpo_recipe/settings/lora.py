"""What a run with LoRA can be told: lora_rank, lora_alpha, target_modules, exclude_modules and lora.merge of the model."""

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.refusals import ACTOR, MODEL, ROLLOUT, Refusal
from srpo_recipe.verify.settings import require

LARGEST_RANK = 512  # that vLLM takes as an adapter

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


def unread(config: DictConfig) -> dict[str, str]:
    """The keys about LoRA that have no effect in this run, as rules.check_unread takes them."""
    model = config.actor_rollout_ref.model
    names = [f"lora.{name}" for name in model.lora if name not in ("merge", "rank", "adapter_path")]
    names += [] if model.lora_rank else OF_ADAPTERS
    return {f"{MODEL}.{name}": "" if model.lora_rank else f"{MODEL}.lora_rank" for name in names}


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for a rank or scale that is none, and for modules that hold the output layer."""
    model = config.actor_rollout_ref.model
    rank, alpha = model.lora_rank, model.lora_alpha
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    require(
        whole and 0 <= rank <= LARGEST_RANK,
        f"{MODEL}.lora_rank={rank}: set it to a whole number from 1 to {LARGEST_RANK}, or to 0 to train all weights",
    )
    require(
        isinstance(alpha, int | float) and not isinstance(alpha, bool) and alpha > 0,
        f"{MODEL}.lora_alpha={alpha}: set it to a positive number; an adapter counts lora_alpha / lora_rank times",
    )
    modules = OmegaConf.to_container(OmegaConf.create({"names": model.target_modules}))
    assert isinstance(modules, dict)
    names = modules["names"]
    require(
        not isinstance(names, list) or not {"lm_head", "embed_out"} & set(names),
        f"{MODEL}.target_modules={names}: leave the output layer out, of which the self-teacher keeps one copy",
    )
