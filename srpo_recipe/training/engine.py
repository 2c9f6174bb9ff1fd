"""verl's FSDP2 engine with what the method needs of a forward pass, and the EMA after every optimiser step.

A pass is named by the batch's `srpo_pass`: "teacher" keeps the self-teacher's states on the rank, "update" gives the loss what it
needs of the student's logits, and a pass without a name is verl's own.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from srpo_recipe.method import dw_sdpo
from srpo_recipe.method.ema import ema_update
from srpo_recipe.method.logits import tokens_in, top_ids
from srpo_recipe.method.loss import count_totals
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.training.fields import TEACHER_ROW, TOTALS, MicroBatch, seen_rows
from srpo_recipe.training.output_layer import AfterHead
from srpo_recipe.training.teacher_states import SEEN_WORDS, TeacherStates
from srpo_recipe.training.teacher_weights import TeacherWeights

# Key of RoutedEngine in verl's engine registry; it builds an ordinary language model.
MODEL_TYPE = "srpo_language_model"
PASS = "srpo_pass"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp2"], device=["cuda", "npu", "cpu"])
class RoutedEngine(TeacherWeights, FSDPEngineWithLMHead):
    """verl's FSDP2 language-model engine as student, or forward-only as the self-teacher.

    As the teacher it differs from verl's reference model in two ways: it stays on the device beside the actor (verl parks a
    forward-only FSDP2 model in pinned host memory, transformer_impl.py:459), and its weights are averaged.
    """

    srpo: SRPOConfig  # set by SRPOWorker.init_model

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
        self.after_head: AfterHead | None = None  # the teacher's
        # of the micro-batch under way: the tokens whose logits are wanted (None for all), and what the teacher's layer was given
        self.head_rows: Tensor | None = None
        self.head_input: Tensor | None = None
        self.skipped_steps = 0  # optimiser steps without a finite gradient since somebody asked
        self.moved = False  # whether the weights moved since the learning rate did

    # ------------------------------------------------------------------------------------------------------- building

    def initialize(self):
        super().initialize()
        self.module.get_output_embeddings().register_forward_pre_hook(self._before_head)

    def _build_module(self):
        module = super()._build_module()
        if self.is_teacher:
            self.after_head = AfterHead(module)
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
        """After the pass over the batch: keep the output layer beside the states. A collective."""
        layer = self.output_layer()
        assert self.after_head is not None
        self.states.close(layer, self.after_head.name)

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        """Count the mini-batch's totals over all ranks before verl cuts it into micro-batches."""
        if not forward_only:
            totals = self._count(data).to(get_device_id())
            torch.distributed.all_reduce(totals, group=self.get_data_parallel_group())
            tu.assign_non_tensor_data(data, TOTALS, tuple(totals.tolist()))
        try:
            return super().forward_backward_batch(data, loss_function, forward_only)
        finally:
            self.head_rows = self.head_input = None

    def _count(self, data: TensorDict) -> Tensor:
        view = MicroBatch.of(data)
        entropy_BT = view.spread_routed(self._teacher_entropy(view).to(view.mask_BT.device))
        return count_totals(view.mask_BT, view.policy_B, view.distill_B, dw_sdpo.confidence(entropy_BT, self.srpo.beta))

    def _teacher_entropy(self, view: MicroBatch) -> Tensor:
        """Of the routed rows' response tokens, in order: float32 [M]."""
        if self.teacher is None:
            return torch.zeros(0, device=view.mask_BT.device)
        return self.teacher.states.entropy(view.teacher_rows, view.mask_BT.device)

    def _before_head(self, _, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Give the output layer the wanted tokens alone: a prompt's logits are neither needed nor made."""
        hidden = inputs[0]
        if self.head_rows is not None:
            hidden = hidden.flatten(0, -2)[self.head_rows].unsqueeze(0)
        if self.after_head is not None:
            self.head_input = hidden.detach()
        return hidden, *inputs[1:]

    def prepare_model_inputs(self, micro_batch: TensorDict):
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        self.head_rows = None
        if self._pass_of(micro_batch) is not None:
            self.head_rows = self._response_rows(micro_batch, model_inputs["input_ids"])
        return model_inputs, output_args

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        """What the pass wants of the logits, which are those of the response tokens alone, row after row: [N, V]."""
        stage = self._pass_of(micro_batch)
        if stage is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits_NV = output.logits.flatten(0, -2)
        options = self._vocabulary_options(logits_NV.shape[1], float(micro_batch["temperature"]))
        if stage == "update":
            return self._student(logits_NV, micro_batch, options)
        assert stage == "teacher" and self.head_input is not None
        rows, responses = micro_batch[TEACHER_ROW].reshape(-1).tolist(), micro_batch["responses"]
        lengths, ends = responses.offsets().diff().tolist(), responses.offsets().tolist()
        self.states.keep(rows, lengths, self.head_input.flatten(0, -2), logits_NV, **options)
        for place, number in enumerate(seen_rows(micro_batch)):
            if number >= 0:
                self.states.see(rows[place], slice(*ends[place : place + 2]), logits_NV, responses.values(), **options)
        return {}

    def _student(self, logits_NV: Tensor, micro_batch: TensorDict, options: dict) -> dict[str, Tensor]:
        """For the loss: the log-prob of each token [N] and, of the routed rows' tokens, divergence and entropy [M]. For seen.py
        the few words that it likes best there, [M, 5].
        """
        view = MicroBatch.of(micro_batch)
        ends = micro_batch["responses"].offsets().tolist()
        spans, routed = list(zip(ends[:-1], ends[1:], strict=True)), view.routed_B.tolist()
        routed_spans = [span for span, taken in zip(spans, routed, strict=True) if taken]
        ids_MK = top_ids(logits_NV, self.srpo.top_k, routed_spans, options["chunk_tokens"])
        # nothing else reads the logits
        log_prob_N, log_mass_MB = student_statistics(
            logits_NV, micro_batch["responses"].values(), ids_MK, spans, routed, overwrite_logits=True, **options
        )
        teacher_MK, tail_M = torch.zeros(ids_MK.shape, device=ids_MK.device), None
        if self.teacher is not None:
            teacher_MK = self.teacher.states.log_probs(view.teacher_rows, ids_MK, **options)
            if dw_sdpo.needs_exact_tail(self.srpo.alpha):
                tail_M = self.teacher.states.log_tail(view.teacher_rows, ids_MK, **options)
        divergence_M = dw_sdpo.divergence(log_mass_MB, teacher_MK, self.srpo.alpha, tail_M)
        return {
            "log_probs": log_prob_N,
            "divergence": divergence_M,
            "teacher_entropy": self._teacher_entropy(view),
            "words": ids_MK[:, :SEEN_WORDS],
            "word_log_probs": log_mass_MB[:, :-1][:, :SEEN_WORDS],
        }

    def _vocabulary_options(self, words: int, temperature: float) -> dict[str, Any]:
        return {"temperature": temperature, "chunk_tokens": tokens_in(self.srpo.chunk_megabytes, words)}

    @staticmethod
    def _pass_of(batch: TensorDict) -> str | None:
        return tu.get_non_tensor_data(data=batch, key=PASS, default=None)

    @staticmethod
    def _response_rows(micro_batch: TensorDict, ids: Tensor) -> Tensor:
        """The rows of the flattened hidden states that predict a response token: P - 1 ... P + R - 2 of each sequence.

        verl packs the sequences (ids [1, total]) or pads them on the right (ids [B, width]).
        """
        prompt_B = micro_batch["prompts"].offsets().diff()
        response_B = micro_batch["responses"].offsets().diff()
        if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
            start_B = micro_batch["input_ids"].offsets()[:-1]
        else:
            start_B = torch.arange(len(prompt_B), device=prompt_B.device) * ids.shape[1]
        first_B = start_B + prompt_B - 1
        spans = zip(first_B.tolist(), (first_B + response_B).tolist(), strict=True)
        return torch.cat([torch.arange(*span) for span in spans]).to(ids.device)
