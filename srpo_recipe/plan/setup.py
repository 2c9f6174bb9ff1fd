"""What of a run's config decides about its memory, in plain numbers."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.plan.adapters import Adapter
from srpo_recipe.settings import lora_modules
from srpo_recipe.settings.lora import ALONE
from srpo_recipe.settings.read import old_policy, read

_BYTES = {"fp32": 4, "float32": 4, "float": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "half": 2}


@dataclass(frozen=True)
class Setup:
    """Sizes are tokens, rows or bytes; `width` is bytes of a number."""

    world: int  # ranks
    per_node: int
    shards: int  # ranks that share one copy of the weights
    split: int  # ranks that have a slice each of the same sequences
    width: int  # of weights and activations in the forward pass
    reduce_width: int  # of gradients while ranks sum them
    on_cpu: bool
    teacher: bool
    adapter: Adapter
    saves_adapters_alone: bool  # checkpoints without the base
    one_forward: bool  # no log-prob pass: the update's own forward gives the old policy
    checkpointing: bool
    packed: bool  # flash-attn without padding
    prefetch: bool  # the next layer is gathered while one is computed
    offload_policy: bool  # actor's weights, gradients and optimiser live on the host
    teacher_offload_policy: bool
    param_offload: bool  # moved to the host outside their own pass
    teacher_param_offload: bool
    optimizer_offload: bool
    update_limit: int  # most tokens of a micro-batch, by pass
    log_prob_limit: int
    teacher_limit: int
    logits_rows: int | None  # tokens whose logits exist at a time; None for a micro-batch's
    chunk_megabytes: float
    prompt: int
    response: int
    teacher_prompt: int
    prompts: int  # of a batch
    rollouts: int  # of a prompt
    mini_batch: int  # prompts
    tensor_parallel: int
    rollout_width: int
    utilization: float  # share of the device's memory that vLLM claims
    kv_bytes: int | None  # vLLM's cache, where it is given in bytes
    sleeps: bool  # vLLM gives its memory back while the actor trains
    max_sequences: int
    batched_tokens: int
    adapter_in_vllm: bool = False  # vLLM keeps the base, and moves it to the host while it sleeps

    @property
    def lora_rank(self) -> int:
        """0 where all weights are trained."""
        return self.adapter.rank

    @property
    def shares(self) -> int:
        """Ranks, or groups of ranks, that have different rows."""
        return max(1, self.world // self.split)

    @property
    def rows(self) -> int:
        """Rollouts of a rank, or of its group, in one optimiser step."""
        return max(1, self.mini_batch * self.rollouts // self.shares)

    @property
    def batch_rows(self) -> int:
        """Rollouts of a rank, or of its group, in a batch."""
        return max(1, self.prompts * self.rollouts // self.shares)

    def sliced(self, tokens: int) -> int:
        """Of a group's tokens, those of one rank."""
        return -(-tokens // self.split)

    @property
    def length(self) -> int:
        """Tokens of the student's longest sequence."""
        return self.prompt + self.response

    @property
    def update_tokens(self) -> int:
        """Most tokens that a rank really has in a micro-batch of the update."""
        return min(self.update_limit, self.sliced(self.rows * self.length))

    @property
    def update_logits(self) -> float:
        """Those of them whose logits are there at once: of the response's, so many as are read at a time."""
        return self._at_once(self.update_tokens * self._of_responses(self.length))

    def _of_responses(self, length: int) -> float:
        """The share of response tokens in sequences of a length; a slice of one may have no others."""
        return 1.0 if self.split > 1 else self.response / length

    def _at_once(self, tokens: float) -> float:
        return tokens if self.logits_rows is None else min(tokens, self.logits_rows)

    @property
    def teacher_tokens(self) -> int:
        """Most tokens of a micro-batch of the teacher's pass; 0 where there is none."""
        group = self.batch_rows * (self.teacher_prompt + self.response)
        return min(self.teacher_limit, self.sliced(group)) if self.teacher else 0

    @property
    def log_prob_tokens(self) -> int:
        """The same of the log-prob pass. verl's, it makes the logits of them all."""
        return 0 if self.one_forward else min(self.log_prob_limit, self.sliced(self.batch_rows * self.length))

    @property
    def scoring_tokens(self) -> int:
        """The larger of the two."""
        return max(self.teacher_tokens, self.log_prob_tokens)

    @property
    def scoring_logits(self) -> float:
        """Most tokens of a pass without a gradient whose logits are there at once."""
        teacher = self.teacher_tokens * self._of_responses(self.teacher_prompt + self.response)
        return max(self._at_once(teacher), self.log_prob_tokens)

    @property
    def engines(self) -> int:
        return max(1, self.world // self.tensor_parallel)


def _width(name: Any, default: str) -> int:
    if str(name or default) not in _BYTES:
        raise ValueError(f"the planner does not know the number type {name}; use one of {', '.join(_BYTES)}")
    return _BYTES[str(name or default)]


def _limits(config: DictConfig) -> dict[str, int]:
    """Most tokens that a rank has of a micro-batch, by pass. Without dynamic batches: so many sequences of full length."""
    split = config.actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size
    actor, ref, rollout = (config.actor_rollout_ref[name] for name in ("actor", "ref", "rollout"))
    response = config.data.max_response_length
    length = config.data.max_prompt_length + response

    def tokens(dynamic: bool, limit: int, micro_batch: int | None) -> int:
        return limit if dynamic else -(-(micro_batch or 1) * length // split)

    return {
        "update_limit": tokens(
            actor.use_dynamic_bsz, actor.ppo_max_token_len_per_gpu, actor.get("ppo_micro_batch_size_per_gpu")
        ),
        "log_prob_limit": tokens(
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
            rollout.log_prob_micro_batch_size_per_gpu,
        ),
        # the trainer raises the budget to the longest row
        "teacher_limit": max(
            ref.log_prob_max_token_len_per_gpu, -(-(config.srpo.teacher.max_prompt_tokens + response) // split)
        ),
    }


def _adapter(config: DictConfig) -> Adapter:
    names = lora_modules.named(config)
    rank = config.actor_rollout_ref.model.lora_rank
    return Adapter(rank, names.get(lora_modules.TARGET), names.get(lora_modules.EXCLUDED, ()))


def from_config(config: DictConfig) -> Setup:
    """The numbers of a composed config. Raises ValueError for a number type that it does not know."""
    settings = read(config)
    actor, ref, rollout, model = (config.actor_rollout_ref[name] for name in ("actor", "ref", "rollout", "model"))
    precision = actor.fsdp_config.get("mixed_precision") or {}
    world = config.trainer.nnodes * config.trainer.n_gpus_per_node
    shards = actor.fsdp_config.fsdp_size
    on_cpu = config.trainer.device == "cpu"
    return Setup(
        world=world,
        per_node=config.trainer.n_gpus_per_node,
        shards=world if shards <= 0 or shards >= world else shards,
        split=actor.fsdp_config.ulysses_sequence_parallel_size,
        width=_width(precision.get("param_dtype"), "bf16"),
        reduce_width=_width(precision.get("reduce_dtype"), "fp32"),
        on_cpu=on_cpu,
        teacher=settings.needs_teacher,
        adapter=_adapter(config),
        saves_adapters_alone=bool(OmegaConf.select(config, ALONE, default=False)),
        one_forward=old_policy(config) == "update",
        checkpointing=model.enable_gradient_checkpointing,
        packed=model.use_remove_padding,
        prefetch=not on_cpu,
        offload_policy=actor.fsdp_config.offload_policy,
        teacher_offload_policy=ref.fsdp_config.offload_policy,
        param_offload=actor.fsdp_config.param_offload,
        teacher_param_offload=ref.fsdp_config.param_offload,
        optimizer_offload=actor.fsdp_config.optimizer_offload,
        **_limits(config),
        logits_rows=settings.logits_rows,
        chunk_megabytes=settings.chunk_megabytes,
        prompt=config.data.max_prompt_length,
        response=config.data.max_response_length,
        teacher_prompt=settings.teacher.max_prompt_tokens,
        prompts=config.data.train_batch_size,
        rollouts=rollout.n,
        mini_batch=actor.ppo_mini_batch_size,
        tensor_parallel=rollout.tensor_model_parallel_size,
        rollout_width=_width(rollout.dtype, "bf16"),
        utilization=rollout.gpu_memory_utilization,
        kv_bytes=(rollout.engine_kwargs.get("vllm") or {}).get("kv_cache_memory_bytes"),
        sleeps=rollout.free_cache_engine,
        max_sequences=rollout.max_num_seqs,
        batched_tokens=rollout.max_num_batched_tokens,
        adapter_in_vllm=bool(model.lora_rank and not OmegaConf.select(model, "lora.merge", default=False)),
    )
