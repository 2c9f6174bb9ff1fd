"""verl's FSDP2 engine with what the method needs of a forward pass, and the EMA after every optimiser step."""

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.base import EngineRegistry

from srpo_recipe.machine import register_attention
from srpo_recipe.method.ema import ema_update
from srpo_recipe.method.loss import count_totals
from srpo_recipe.settings.options import over_mean
from srpo_recipe.training import split_check
from srpo_recipe.training.fields import TOTALS, MicroBatch
from srpo_recipe.training.losses import token_weight
from srpo_recipe.training.output_layer import after_head_of
from srpo_recipe.training.passes import NamedPasses
from srpo_recipe.training.teacher_states import TeacherStates
from srpo_recipe.training.teacher_weights import TeacherWeights

# Key of RoutedEngine in verl's engine registry; it builds an ordinary language model.
MODEL_TYPE = "srpo_language_model"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp2"], device=["cuda", "npu", "cpu"])
class RoutedEngine(TeacherWeights, NamedPasses):
    """verl's FSDP2 language-model engine as student, or forward-only as the self-teacher.

    As the teacher it differs from verl's reference model in two ways: it stays on the device beside the actor (verl parks a
    forward-only FSDP2 model in pinned host memory, transformer_impl.py:459), and its weights are averaged.
    """

    def __init__(self, model_config, engine_config, optimizer_config, checkpoint_config):
        model_config.model_type = "language_model"
        self.is_teacher = engine_config.forward_only
        if self.is_teacher:
            engine_config = replace(engine_config, forward_only=False)
            checkpoint_config = CheckpointConfig(save_contents=["model"], load_contents=["model"])
        super().__init__(model_config, engine_config, optimizer_config, checkpoint_config)
        self.teacher: RoutedEngine | None = (
            None  # the student's; itself where both are adapters of one model (adapters.py)
        )
        self.states = TeacherStates()  # the teacher's, from its pass to the update's end
        self.first_states = TeacherStates()  # the first model's under the same prompts, where a target asks it
        self.skipped_steps = 0  # optimiser steps without a finite gradient since somebody asked
        self.moved = False  # whether the weights moved since the learning rate did
        self.split_compared = False

    # ------------------------------------------------------------------------------------------------------- building

    def initialize(self):
        super().initialize()
        self.take_output_layer()

    def _build_module(self):
        register_attention()
        module = super()._build_module()
        if self.use_ulysses_sp:
            split_check.refuse_images(module)
        self.after_head = after_head_of(module, needed=self.is_teacher)
        return module

    def _build_optimizer(self, module):
        return None if self.is_teacher else super()._build_optimizer(module)

    def _build_lr_scheduler(self, optimizer):
        return None if self.is_teacher else super()._build_lr_scheduler(optimizer)

    # -------------------------------------------------------------------------------------------------------- weights

    def optimizer_step(self):
        """One optimiser step, then the teacher follows (paper: after every step). verl skips a step whose gradient is not
        finite (transformer_impl.py:862): then nothing follows either.
        """
        grad_norm = super().optimizer_step()
        if not math.isfinite(grad_norm):
            self.skipped_steps += 1
            return grad_norm
        self.moved = True
        if self.teacher is not None:
            ema_update(self.teacher.teacher_shards(), self.shards(), self.srpo.teacher.rate)
        return grad_norm

    def lr_scheduler_step(self):
        """Advance the learning rate, unless every optimiser step since the last time was skipped."""
        if not self.moved:
            return self.lr_scheduler.get_last_lr()[0]
        self.moved = False
        return super().lr_scheduler_step()

    # --------------------------------------------------------------------------------------------------- forward passes

    def finish_teacher_pass(self) -> None:
        """After the passes over the batch: keep the output layer beside the states. A collective."""
        layer = self.output_layer()
        assert self.after_head is not None
        self.states.close(layer, self.after_head.name)
        if self.first_states.kept:  # its adapters are not in the output layer
            self.first_states.close(layer, self.after_head.name)

    def forget_teacher(self) -> None:
        """Forget the batch that was scored."""
        self.states.clear()
        self.first_states.clear()

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        """Count the mini-batch's totals over the ranks that have different rows before verl cuts it into micro-batches."""
        self._compare_split()
        if not forward_only:
            totals = self._count(data).to(get_device_id())
            torch.distributed.all_reduce(totals, group=self.get_data_parallel_group())
            tu.assign_non_tensor_data(data, TOTALS, tuple(totals.tolist()))
        try:
            return super().forward_backward_batch(data, loss_function, forward_only)
        finally:
            self.forget_pass()

    def _compare_split(self) -> None:
        """Once a run, where sequences are split: see that the model computes the same on them (split_check.py)."""
        if self.ulysses_parallel_group is None or self.split_compared:
            return
        split_check.check(
            self.module,
            self.ulysses_parallel_group,
            self.module.get_output_embeddings().weight.shape[0],
            get_device_id(),
            nullcontext()
            if self._autocast_dtype == torch.float32
            else torch.autocast(get_device_name(), self._autocast_dtype),
        )
        self.split_compared = True

    def _count(self, data: TensorDict) -> Tensor:
        view = MicroBatch.of(data)
        entropy_BT, gap_BT = (view.spread_routed(part.to(view.mask_BT.device)) for part in self._taught(view))
        weight_BT = token_weight(self.srpo, view, entropy_BT, gap_BT)
        if not over_mean(self.srpo):
            weight_BT = torch.ones_like(weight_BT)
        return count_totals(view.mask_BT, view.policy_B, view.distill_B, weight_BT)
