"""What the update's settings have to be to each other: precision, micro-batches, and the schedule of the learning rate."""

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import is_count, said, shown
from srpo_recipe.settings.parallel import SIZE
from srpo_recipe.settings.read import old_policy
from srpo_recipe.settings.refusals import ACTOR, REF, ROLLOUT
from srpo_recipe.verify.settings import require

# verl.utils.torch_dtypes.PrecisionType, without its names of fp16
PRECISIONS = ("bf16", "bfloat16", "fp32", "float32")
KINDS = tuple(f"mixed_precision.{kind}_dtype" for kind in ("param", "reduce", "buffer"))
WARM_UP = f"{ACTOR}.optim.lr_warmup_steps"


def check(config: DictConfig) -> None:
    """Raise ValueError, with key and fix."""
    _check_precision(config)
    _check_micro_batches(config)
    optim = config.actor_rollout_ref.actor.optim
    require(
        not optim.lr_warmup_steps_ratio or optim.lr_warmup_steps == -1,
        f"{WARM_UP}_ratio={optim.lr_warmup_steps_ratio} has no effect with {WARM_UP}={optim.lr_warmup_steps}: set "
        f"{WARM_UP}=-1, or the ratio to 0",
    )


def _check_precision(config: DictConfig) -> None:
    kinds = [(ACTOR, "model_dtype"), *((part, kind) for part in (ACTOR, REF) for kind in KINDS)]
    for key in (f"{part}.fsdp_config.{kind}" for part, kind in kinds):
        value = OmegaConf.select(config, key, default=None)
        require(
            value is None or value in PRECISIONS,
            f"{said(key, value)}: set it to {' or '.join(PRECISIONS[::2])} (verl scales a loss in fp16, and the "
            "gradients of the logits are made before that)",
        )


def _check_micro_batches(config: DictConfig) -> None:
    """verl says it in the step that has the first sequence of full length, or as many rows as do not fit."""
    roles = config.actor_rollout_ref
    passes = [
        (ACTOR, "ppo_max_token_len_per_gpu", "ppo_micro_batch_size_per_gpu", True),
        (ROLLOUT, "log_prob_max_token_len_per_gpu", "log_prob_micro_batch_size_per_gpu", old_policy(config) == "pass"),
    ]
    prompt, response = config.data.max_prompt_length, config.data.max_response_length
    split = OmegaConf.select(config, SIZE)
    for role, tokens, rows, runs in passes:
        given = roles[role.rpartition(".")[2]]
        if not roles.actor.use_dynamic_bsz:
            value = given.get(rows)
            require(
                is_count(value),
                f"{role}.{rows}={shown(value)}: with {ACTOR}.use_dynamic_bsz=false set it to the rows of a micro-batch, a "
                "whole number of at least 1",
            )
            continue
        need = -(-(prompt + response) // split)
        require(
            not runs or given[tokens] >= need,
            f"{role}.{tokens}={given[tokens]} has no room for a sequence of data.max_prompt_length={prompt} and "
            f"data.max_response_length={response} tokens{f' over {split} ranks' if split > 1 else ''}: set it to at least {need}",
        )
