"""The engines of one rank as training joins them (training/worker.py), without Ray: student, self-teacher, or verl's own GRPO."""

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from torch import Tensor
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name
from verl.workers.engine.base import EngineRegistry
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from srpo_recipe.gpu_check.place import Place
from srpo_recipe.gpu_check.rows import Rollouts, batch
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.read import read
from srpo_recipe.training import engine as _engine
from srpo_recipe.training.losses import update_loss

OFFLOADS = {
    "": {},
    # FSDP2's own: weights, gradients and moments live on the host
    "offload_policy": {"offload_policy": True},
    # verl's: moved to the host outside their own pass
    "param_offload": {"param_offload": True, "optimizer_offload": True},
}


@dataclass(frozen=True)
class Way:
    """How a model is computed. dtype: fp32 or bf16; attention: transformers' name; packed: without padding; checkpointing: of the
    layers; offload: of OFFLOADS; pass_rows: rollouts of full length that a micro-batch holds.
    """

    dtype: str = "fp32"
    attention: str = "sdpa"
    packed: bool = False
    checkpointing: bool = False
    offload: str = ""
    pass_rows: int = 3

    def __str__(self) -> str:
        """As the table names it."""
        return f"{self.attention}, {'packed' if self.packed else 'padded'}, {self.dtype}"


@cache
def _composed(device: str, model: str) -> DictConfig:
    """Training's config before a way of computing is put in; composing takes seconds."""
    hardware = "gpu1" if device == "cuda" else "cpu"
    given = ["model=path", f"actor_rollout_ref.model.path={model}", "task=parquet"]
    return compose_config([f"hardware={hardware}", *given, "data.train_files=none", "data.val_files=none"])


def limit(rollouts: Rollouts, way: Way, stage: str) -> int:
    """Most tokens of a micro-batch. stage: "teacher", or another one."""
    longest = max(rollouts.prompts) + max(len(one) for one in rollouts.responses)
    return way.pass_rows * (longest + (len(rollouts.hint) if stage == "teacher" else 0))


def config_of(folder: Path, place: Place, way: Way, rollouts: Rollouts) -> DictConfig:
    """Training's config of such a rank; the planner reads the same one. folder: of the model."""
    config = deepcopy(_composed(place.device, str(folder)))
    prompt, response = max(rollouts.prompts), max(len(one) for one in rollouts.responses)
    update, teacher = (limit(rollouts, way, stage) for stage in ("update", "teacher"))
    keys: dict[str, Any] = {
        "trainer.n_gpus_per_node": place.world,
        "data.train_batch_size": 1,
        "data.max_prompt_length": prompt,
        "data.max_response_length": response,
        "srpo.top_k": 100,
        "srpo.teacher.max_prompt_tokens": prompt + len(rollouts.hint),
    }
    model, actor = "model", "actor"
    of_roles: dict[str, Any] = {
        f"{model}.use_remove_padding": way.packed,
        f"{model}.override_config.attn_implementation": way.attention,
        f"{model}.enable_gradient_checkpointing": way.checkpointing,
        "rollout.n": len(rollouts.ids),
        "rollout.log_prob_max_token_len_per_gpu": update,
        "ref.log_prob_max_token_len_per_gpu": teacher,
        f"{actor}.ppo_max_token_len_per_gpu": update,
        f"{actor}.optim.lr": 1e-3,
        f"{actor}.optim.lr_warmup_steps": 0,
        f"{actor}.optim.total_training_steps": 1000,
    }
    precision = {"param_dtype": way.dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    for role in (actor, "ref"):
        chosen = {"offload_policy": False, "param_offload": False, "optimizer_offload": False, **OFFLOADS[way.offload]}
        of_roles |= {f"{role}.fsdp_config.{key}": value for key, value in chosen.items()}
        of_roles[f"{role}.fsdp_config.mixed_precision"] = precision
    with open_dict(config):
        for key, value in (keys | {f"actor_rollout_ref.{key}": value for key, value in of_roles.items()}).items():
            OmegaConf.update(config, key, value, force_add=True)
    return config


class Rank:
    """Student and self-teacher; with stock=True verl's own engine, as its GRPO has it."""

    def __init__(self, folder: Path, place: Place, way: Way, rollouts: Rollouts, stock: bool = False):
        """folder: of the model; rollouts: say how long sequences get. Raises what verl raises."""
        self.place, self.way = place, way
        self.config = config_of(folder, place, way, rollouts)
        if stock:
            OmegaConf.update(self.config, "actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla")
        self.model_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.student = self._engine(self.actor_config.engine, "language_model" if stock else _engine.MODEL_TYPE)
        if stock:
            self.loss: Any = partial(ppo_loss, self.actor_config)
            return
        self.teacher = self._engine(replace(self.actor_config.engine, forward_only=True), _engine.MODEL_TYPE)
        self.student.srpo = self.teacher.srpo = read(self.config)
        self.student.actor_config = self.actor_config
        self.student.teacher = self.teacher
        self.loss = partial(update_loss, self.actor_config, self.student.srpo)

    def _engine(self, engine_config, model_type: str):
        engine = EngineRegistry.new(
            model_type=model_type,
            backend=engine_config.strategy,
            model_config=deepcopy(self.model_config),
            engine_config=engine_config,
            optimizer_config=self.actor_config.optim,
            checkpoint_config=self.actor_config.checkpoint,
        )
        engine.initialize()
        return engine

    # ---------------------------------------------------------------------------------------------------------- passes

    def mine(self, rollouts: Rollouts) -> list[int]:
        """The rollouts of this rank; their number must be a multiple of the ranks'."""
        share = len(rollouts.ids) // self.place.world
        return list(range(self.place.rank * share, (self.place.rank + 1) * share))

    def _batch(
        self, rollouts: Rollouts, rows: Sequence[int], stage: str, old: Sequence[Tensor] = (), **options
    ) -> TensorDict:
        cut = {"use_dynamic_bsz": True, "max_token_len_per_gpu": limit(rollouts, self.way, stage)}
        return batch(rollouts, rows, stage, old, use_remove_padding=self.way.packed, **cut, **options)

    def teacher_batch(self, rollouts: Rollouts) -> TensorDict | None:
        """verl's batch of this rank's routed rollouts, filled up to as many on every rank; None where none is routed anywhere."""
        share = len(rollouts.ids) // self.place.world
        most = int((rollouts.distill > 0).view(self.place.world, share).sum(-1).max())
        if not most:
            return None
        mine = self.mine(rollouts)
        rows = [row for row in mine if row in rollouts.routed]
        rows += mine[:1] * (most - len(rows))
        return self._batch(rollouts, rows, "teacher", compute_loss=False)

    def teacher_pass(self, data: TensorDict) -> None:
        """Over the batch; `finish_teacher_pass` of the engine comes after it."""
        self.teacher.states.clear()
        with self.teacher.eval_mode():
            self.teacher.infer_batch(data, loss_function=None)

    def score(self, rollouts: Rollouts) -> None:
        """What training does with the routed rollouts before the update."""
        data = self.teacher_batch(rollouts)
        if data is not None:
            self.teacher_pass(data)
            self.teacher.finish_teacher_pass()

    def update_batch(self, rollouts: Rollouts) -> TensorDict:
        """verl's batch of this rank's rollouts for an update."""
        return self._batch(rollouts, self.mine(rollouts), "update")

    def backward(self, rollouts: Rollouts) -> float:
        """Loss of the mini-batch over all ranks; its gradient is in the student's parameters. The teacher has scored it."""
        data = self.update_batch(rollouts)
        self.student.optimizer_zero_grad()
        output = self.student.forward_backward_batch(data, self.loss)
        loss = torch.tensor(sum(output["loss"]), dtype=torch.float64)
        dist.all_reduce(loss, op=dist.ReduceOp.SUM)
        return float(loss) / self.place.world

    def step(self, rollouts: Rollouts) -> None:
        """What training does between the rollouts and the weight sync: teacher, update, EMA, and how far the teacher is."""
        self.score(rollouts)
        with self.student.train_mode():
            self.student.train_batch(self.update_batch(rollouts), self.loss)
        self.teacher.states.clear()
        self.student.relative_teacher_distance()

    def stock_step(self, rollouts: Rollouts) -> None:
        """verl's GRPO: its log-prob pass, with the entropy that it logs, and its update (trainer_base.py:1634, 1827)."""
        rows = self.mine(rollouts)
        data = self._batch(rollouts, rows, "", calculate_entropy=True, compute_loss=False)
        with self.student.eval_mode():
            output = self.student.infer_batch(data, loss_function=None)["model_output"]
        padded_BT = no_padding_2_padding(output["log_probs"], data)
        old = [padded_BT[place, : len(rollouts.responses[row])].cpu() for place, row in enumerate(rows)]
        with self.student.train_mode():
            self.student.train_batch(self._batch(rollouts, rows, "", old), self.loss)


def join(place: Place, folder: Path) -> None:
    """Make the process group of the ranks, through a file; nothing is asked of a network but the loopback."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    backend = "gloo" if place.device == "cpu" else "cpu:gloo,cuda:nccl"
    if place.device == "cuda":
        torch.cuda.set_device(place.rank)
    dist.init_process_group(backend, init_method=f"file://{folder / 'ranks'}", rank=place.rank, world_size=place.world)


def whole(engine: Any, gradient: bool = False) -> dict[str, Tensor]:
    """Copies of the engine's parameters, or of their gradients, gathered from all ranks onto the host. A collective."""
    engine.reshard()
    found = {}
    for name, parameter in engine.module.named_parameters():
        value = parameter.grad if gradient else parameter.detach()
        if value is not None:  # an offloaded shard visits the device, where ranks gather
            found[name] = value.to(get_device_name()).full_tensor().detach().to("cpu", copy=True)
    return found
