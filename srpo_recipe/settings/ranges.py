"""What numbers and choices of verl's config may be: verl itself would say so late, or do something else without a word.

A key stands here with the kind of its values; `check` walks the table on the resolved config. Every other setting has to be of
the type that verl's own value has, so `trainer.val_only=no`, which is a text and so true, is refused.
"""

import math
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.kinds import ABSENT, Kind, above, at_least, leaves, one_of, said, whole, within
from srpo_recipe.settings.refusals import ACTOR, MODEL, REF, ROLLOUT
from srpo_recipe.verify.settings import require

COUNT = whole(1)
SHARE = within(0, 1, low_too=False)
NONE = "null for none"
EVERY = COUNT.or_else(-1, "-1 for never")
ALL = COUNT.or_else(-1, "-1 for all")
IDS = COUNT.or_else(-1, "-1 for all ids")
TURNS = COUNT.or_else(None, "null for no limit")

# vllm.model_executor.model_loader.LoadFormats
LOAD_FORMATS = (
    "auto", "hf", "dummy", "fastsafetensors", "instanttensor", "mistral", "modelexpress", "npcache", "pt", "runai_streamer",
    "runai_streamer_sharded", "safetensors", "sharded_state", "tensorizer",
)  # fmt: skip
# verl.experimental.agent_loop.tool_parser.ToolParser
TOOL_FORMATS = ("hermes", "gpt-oss", "qwen3_coder", "glm", "seed", "minimax", "kimi", "deepseek_v4", "gemma4")
# verl.utils.tracking.Tracking.supported_backend
LOGGERS = (
    "wandb", "mlflow", "swanlab", "vemlp_wandb", "tensorboard", "console", "clearml", "trackio", "file", "rl_insight",
)  # fmt: skip

RANGES: dict[str, Kind] = {
    "data.train_batch_size": COUNT,
    "data.max_prompt_length": COUNT,
    "data.max_response_length": COUNT,
    "data.val_batch_size": COUNT.or_else(None, "null for all at once"),
    "data.train_max_samples": ALL,
    "data.val_max_samples": ALL,
    "data.dataloader_num_workers": whole(0),
    "data.truncation": one_of("error", "left", "right", "middle"),
    f"{ACTOR}.ppo_mini_batch_size": COUNT,
    f"{ACTOR}.ppo_epochs": COUNT,
    f"{ACTOR}.ppo_max_token_len_per_gpu": COUNT,
    f"{ACTOR}.clip_ratio_low": within(0, 1),
    f"{ACTOR}.clip_ratio_high": at_least(0),
    f"{ACTOR}.clip_ratio_c": above(1),
    f"{ACTOR}.optim.lr": at_least(0),
    f"{ACTOR}.optim.weight_decay": at_least(0),
    f"{ACTOR}.optim.clip_grad": above(0),
    f"{ACTOR}.optim.lr_warmup_steps": whole(0).or_else(-1, "-1 to take lr_warmup_steps_ratio"),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": within(0, 1),
    f"{ACTOR}.optim.lr_scheduler_type": one_of("constant", "cosine"),
    f"{ACTOR}.optim.min_lr_ratio": within(0, 1).or_else(None, NONE),
    f"{ACTOR}.fsdp_config.fsdp_size": COUNT.or_else(-1, "-1 for all ranks"),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": COUNT,
    f"{REF}.log_prob_max_token_len_per_gpu": COUNT,
    f"{ROLLOUT}.n": COUNT,
    f"{ROLLOUT}.top_k": IDS,
    f"{ROLLOUT}.top_p": SHARE,
    f"{ROLLOUT}.tensor_model_parallel_size": COUNT,
    f"{ROLLOUT}.gpu_memory_utilization": SHARE,
    f"{ROLLOUT}.max_num_seqs": COUNT,
    f"{ROLLOUT}.max_num_batched_tokens": COUNT,
    f"{ROLLOUT}.max_model_len": COUNT.or_else(None, "null for prompt and response"),
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": COUNT,
    f"{ROLLOUT}.load_format": one_of(*LOAD_FORMATS),
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": COUNT,
    f"{ROLLOUT}.agent.num_workers": COUNT,
    f"{ROLLOUT}.multi_turn.format": one_of(*TOOL_FORMATS),
    f"{ROLLOUT}.multi_turn.max_assistant_turns": TURNS,
    f"{ROLLOUT}.multi_turn.max_user_turns": TURNS,
    f"{ROLLOUT}.multi_turn.max_parallel_calls": COUNT,
    f"{ROLLOUT}.multi_turn.max_tool_response_length": whole(2),  # the middle is cut out between two halves
    f"{ROLLOUT}.multi_turn.tool_response_truncate_side": one_of("left", "middle", "right"),
    f"{ROLLOUT}.val_kwargs.n": COUNT,
    f"{ROLLOUT}.val_kwargs.temperature": at_least(0),
    f"{ROLLOUT}.val_kwargs.top_k": IDS,
    f"{ROLLOUT}.val_kwargs.top_p": SHARE,
    "reward.num_workers": COUNT,
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.total_epochs": COUNT,
    "trainer.total_training_steps": COUNT.or_else(None, "null for all of trainer.total_epochs"),
    "trainer.test_freq": EVERY,
    "trainer.save_freq": EVERY,
    "trainer.max_actor_ckpt_to_keep": COUNT.or_else(None, "null for all"),
    "trainer.log_val_generations": whole(0),
    "trainer.resume_mode": one_of("auto", "disable", "resume_path"),
    "trainer.v1.colocate_async.num_warmup_batches": within(0, 1000),
    "trainer.v1.sampler.max_off_policy_threshold": COUNT.or_else(None, "null for none"),
    "trainer.v1.sampler.max_off_policy_strategy": one_of("drop", "wait"),
}

# Of two types: two bounds as 0.5_2.0 where verl has a number (rules.py looks at them), and lists where verl has one text.
FREE = {
    "algorithm.rollout_correction.rollout_is_threshold",
    "data.train_files",
    "data.val_files",
    f"{MODEL}.target_modules",
}
TYPED = ("algorithm", "data", "reward", "trainer", ACTOR, REF, ROLLOUT, MODEL)
FIXES = {bool: "true or false", float: "a number", str: "a text, in quotes"}


def check(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for a value that is out of its range or none of its choices."""
    for key, kind in RANGES.items():
        value = OmegaConf.select(config, key, default=ABSENT)
        require(value is not ABSENT and kind.holds(value), f"{said(key, value)}: set it to {kind.fix}")
    logger = config.trainer.logger
    for name in [logger] if isinstance(logger, str) else logger or []:
        choices = f"trainer.logger is a list of {', '.join(LOGGERS)}"
        require(name in LOGGERS, f"trainer.logger={logger}: there is no logger {name}; {choices}")
    _check_age(config)


def _check_age(config: DictConfig) -> None:
    """Batches wait in the order of their questions, so one is trained `ahead` steps after it was asked for; and its age counts
    that step as well (verl/trainer/ppo/v1/replay_buffer.py, ReplayBufferAsync).
    """
    v1 = config.trainer.v1
    ahead, oldest = v1.colocate_async.num_warmup_batches, v1.sampler.max_off_policy_threshold
    drops = v1.trainer_mode == "srpo_colocate_async" and v1.sampler.max_off_policy_strategy == "drop"
    require(
        not drops or oldest is None or ahead <= oldest - 1,
        f"trainer.v1.colocate_async.num_warmup_batches={ahead} lets rollouts become older than "
        f"trainer.v1.sampler.max_off_policy_threshold={oldest}, so that they are dropped: set it to at most {(oldest or 1) - 1}, "
        "or raise the threshold",
    )


def check_types(config: DictConfig) -> None:
    """Raise ValueError, with key and fix, for a value of another type than verl's own, and for what is not a number."""
    types = _types()
    for section in TYPED:
        for key, value in leaves(OmegaConf.select(config, section, default=ABSENT), section):
            require(value == value, f"{said(key, value)} is not a number: set it to one")
            wanted = types.get(key)
            if value is not None and wanted is not None:
                require(_type(value) == wanted, f"{said(key, value)}: set it to {FIXES[wanted]}, as verl has it")


@cache
def _types() -> dict[str, type]:
    """The type of verl's own value, by key, of what has one and is not looked at elsewhere."""
    found = {}
    for section in TYPED:
        for key, value in leaves(OmegaConf.select(verl_defaults(), section, default=ABSENT), section):
            if key not in RANGES and key not in FREE and _type(value) in FIXES:
                found[key] = _type(value)
    return found


def _type(value: Any) -> Any:
    return float if type(value) is int else type(value)


def check_finite(config: DictConfig) -> None:
    """Raise ValueError for any number that is NaN or infinite, whoever reads it."""
    for section in config:
        for key, value in leaves(config[section], str(section)):
            require(
                not isinstance(value, float) or math.isfinite(value), f"{said(key, value)}: set it to a finite number"
            )
