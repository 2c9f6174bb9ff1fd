"""What a forward pass with a name makes of the logits: "teacher" keeps the self-teacher's states and "first" those of the first
model, "update" gives the loss what it needs of the student. Each of them `srpo.logits_rows` tokens at a time, or all at once
where it is null.

A pass is named by the batch's `srpo_pass`; one without a name is verl's own.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from srpo_recipe.method import dw_sdpo
from srpo_recipe.method.logits import tokens_in, top_ids
from srpo_recipe.method.student_head import Divergence, StudentPass
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import OutputLayer
from srpo_recipe.settings.options import at, needs_gap, needs_reference
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.training.fields import TEACHER_ROW, MicroBatch, seen_rows
from srpo_recipe.training.losses import token_gradients
from srpo_recipe.training.output_layer import AfterHead, HeadPass
from srpo_recipe.training.split import Split, split_of
from srpo_recipe.training.teacher_states import SEEN_WORDS, Blocks, Taught, TeacherStates, TeacherTokens, probed

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig

    from srpo_recipe.training.engine import RoutedEngine

PASS = "srpo_pass"


class NamedPasses(FSDPEngineWithLMHead):
    """verl's engine of a language model, with the passes of RoutedEngine (engine.py)."""

    srpo: SRPOConfig  # set by SRPOWorker.init_model, as is the next
    actor_config: "ActorConfig"
    teacher: "RoutedEngine | None"
    states: TeacherStates
    first_states: TeacherStates
    after_head: AfterHead | None
    head: HeadPass
    # of the micro-batch under way: the tokens whose logits are wanted (None for all), how they lie on the ranks that split its
    # sequences, what the output layer was given for them, and the pass of a student whose logits are made in blocks
    head_rows: Tensor | None = None
    split: Split = Split.whole(())
    head_input: Tensor | None = None
    student_pass: StudentPass | None = None

    def take_output_layer(self) -> None:
        """After the model is sharded: see what its output layer is given, and take its place where a pass asks for that."""
        self.module.get_output_embeddings().register_forward_pre_hook(self._before_head)
        self.head = HeadPass(self.module, self.after_head)

    def forget_pass(self) -> None:
        """After the last micro-batch."""
        self.head_rows = self.head_input = self.student_pass = None
        self.head.clear()

    def _before_head(self, _, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Give the output layer the wanted tokens alone: a prompt's logits are neither needed nor made."""
        hidden = inputs[0]
        if self.head_rows is not None:
            hidden = hidden.flatten(0, -2)[self.head_rows].unsqueeze(0)
            self.head_input = hidden.detach().flatten(0, -2)
        return hidden, *inputs[1:]

    def prepare_model_inputs(self, micro_batch: TensorDict):
        self.forget_pass()
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        stage = self._pass_of(micro_batch)
        if stage is not None:
            self.head_rows, self.split = split_of(micro_batch, model_inputs["input_ids"], self.ulysses_parallel_group)
            if self.srpo.logits_rows is not None and self.after_head is not None:
                self.head.work = partial(self._student_work if stage == "update" else self._teacher_work, micro_batch)
        return model_inputs, output_args

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        """What the pass wants of the logits, which are those of the response tokens alone, row after row: [N, V]."""
        stage = self._pass_of(micro_batch)
        if stage is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if stage == "update":
            return self._student(output.logits, micro_batch)
        assert stage in ("teacher", "first") and self.head_input is not None
        states = self._states_of(micro_batch)
        if self.head.probed is not None:
            hidden_NH, logits_NV = self.head.probed
            states.probe(hidden_NH, logits_NV, **self._options(logits_NV.shape[1], micro_batch))
            return {}
        logits_NV, place = output.logits.flatten(0, -2), probed(len(self.head_input))
        options = self._options(logits_NV.shape[1], micro_batch)
        states.probe(self.head_input[place], logits_NV[place], **options)
        self._keep(micro_batch, self.head_input, lambda part: [(slice(0, None), logits_NV[part])], options)
        return {}

    # ------------------------------------------------------------------------------------------------------- teacher

    def _teacher_work(
        self, micro_batch: TensorDict, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
    ) -> Tensor:
        """In the place of the output layer: keep everything, return nothing of use."""
        assert self.after_head is not None
        layer = OutputLayer(weight_VH.detach(), bias_V, self.after_head.function)
        hidden_NH, options = hidden_NH.detach(), self._options(len(weight_VH), micro_batch)
        self._keep(micro_batch, hidden_NH, lambda part: layer.blocks(hidden_NH[part], self.srpo.logits_rows), options)
        return hidden_NH.new_zeros(1)

    def _keep(
        self, micro_batch: TensorDict, hidden_NH: Tensor, blocks: Callable[[slice], Blocks], options: dict
    ) -> None:
        """Of a pass of the teacher's over a micro-batch. blocks: the logits of a slice of this rank's tokens."""
        rows, responses = micro_batch[TEACHER_ROW].reshape(-1).tolist(), micro_batch["responses"]
        ends, own_ends = responses.offsets().tolist(), [0, *accumulate(self.split.own_lengths)]
        states = self._states_of(micro_batch)
        states.keep(rows, self.split, hidden_NH, blocks(slice(0, None)), **options)
        for place, number in enumerate(seen_rows(micro_batch)):
            if number >= 0:
                part, labels = slice(*own_ends[place : place + 2]), responses.values()[slice(*ends[place : place + 2])]
                states.see(rows[place], blocks(part), labels, **options)

    def _states_of(self, micro_batch: TensorDict) -> TeacherStates:
        return self.first_states if self._pass_of(micro_batch) == "first" else self.states

    def _taught(self, view: MicroBatch) -> Taught:
        """Of the routed rows' response tokens, in order."""
        if self.teacher is None:
            nothing = torch.zeros(0, device=view.mask_BT.device)
            return Taught(nothing, nothing)
        rows, states = view.teacher_rows, self.teacher.states
        entropy_M = states.entropy(rows, view.mask_BT.device)
        if not rows or not needs_gap(self.srpo):
            return Taught(entropy_M, torch.zeros_like(entropy_M))
        # however the sequences are split, each rank of a group asks for as many tokens
        split_M = Split.even(view.length_B[view.routed_B].tolist(), self.ulysses_parallel_group)
        tokens, routed_N = states.tokens_of(rows, split_M), view.routed_B.repeat_interleave(view.length_B)
        options = self._options(len(tokens.layer.weight_VH), view.data)
        # the mini-batch lies on the host while it is counted, and the teacher's states on the device
        labels_M1 = view.data["responses"].values()[routed_N][split_M.own].unsqueeze(-1).to(tokens.hidden_MH.device)
        own_M = split_M.gather(tokens.log_probs(slice(0, None), labels_M1, **options).squeeze(-1))
        return Taught(entropy_M, own_M - view.sampler_N[routed_N].to(own_M.device))

    # ------------------------------------------------------------------------------------------------------- student

    def _student_work(
        self, micro_batch: TensorDict, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
    ) -> Tensor:
        """In the place of the output layer: both results of the pass over this rank's tokens, one after the other, [N + M]."""
        assert self.after_head is not None
        view, options = MicroBatch.of(micro_batch), self._options(len(weight_VH), micro_batch)
        gradients = token_gradients(self.actor_config, self.srpo, micro_batch, self._taught(view))
        self.student_pass = StudentPass(
            micro_batch["responses"].values()[self.split.own],
            list(zip(self.split.own_lengths, view.routed_B.tolist(), strict=True)),
            self.srpo.top_k,
            self._divergence(view, options),
            self.split.told(gradients),
            self.after_head.function,
            rows=self.srpo.logits_rows or 0,
            shown=SEEN_WORDS,
            **options,
        )
        return torch.cat(self.student_pass(hidden_NH, weight_VH, bias_V))

    def _student(self, logits: Tensor, micro_batch: TensorDict) -> dict[str, Tensor]:
        """For the loss: the log-prob of each token [N] and, of the routed rows' tokens, divergence, entropy and gap [M]. For
        seen.py the few words that it likes best there, [M, 5]. Of all tokens, on every rank that has a part of them.
        """
        view, made = MicroBatch.of(micro_batch), self.student_pass
        if made is not None:
            log_prob_N, divergence_M = logits.split([len(made.labels_N), len(made.ids_MS)])
            words_MS, word_log_prob_MS = made.ids_MS, made.log_prob_MS
        else:
            log_prob_N, divergence_M, words_MS, word_log_prob_MS = self._of_logits(logits.flatten(0, -2), micro_batch)
        split_M = self.split.of(view.routed_B.tolist())
        found = {"log_probs": self.split.gather(log_prob_N), "divergence": split_M.gather(divergence_M)}
        found |= {
            f"teacher_{name}": part_M for name, part_M in zip(("entropy", "gap"), self._taught(view), strict=True)
        }
        found |= {"words": words_MS, "word_log_probs": word_log_prob_MS}
        if any(number >= 0 for number in view.seen):
            found |= {name: split_M.gather(found[name]) for name in ("words", "word_log_probs")}
        return found

    def _of_logits(self, logits_NV: Tensor, micro_batch: TensorDict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(log_prob_N, divergence_M, words_MS, word_log_prob_MS) of this rank's tokens from all their logits at once."""
        view, options = MicroBatch.of(micro_batch), self._options(logits_NV.shape[1], micro_batch)
        ends, routed = [0, *accumulate(self.split.own_lengths)], view.routed_B.tolist()
        spans = list(pairwise(ends))
        routed_spans = [span for span, taken in zip(spans, routed, strict=True) if taken]
        ids_MK = top_ids(logits_NV, self.srpo.top_k, routed_spans, options["chunk_tokens"])
        labels_N = micro_batch["responses"].values()[self.split.own]
        # nothing else reads the logits
        log_prob_N, log_mass_MB = student_statistics(
            logits_NV, labels_N, ids_MK, spans, routed, overwrite_logits=True, **options
        )
        divergence_M = self._divergence(view, options)(slice(0, None), ids_MK, log_mass_MB)
        return log_prob_N, divergence_M, ids_MK[:, :SEEN_WORDS], log_mass_MB[:, :-1][:, :SEEN_WORDS]

    def _divergence(self, view: MicroBatch, options: dict) -> Divergence:
        """Of this rank's tokens of the routed rows, asked at some of them."""
        teacher, rows = self.teacher, view.teacher_rows
        split_M = self.split.of(view.routed_B.tolist())
        tokens = teacher.states.tokens_of(rows, split_M) if teacher is not None and rows else None
        target = at(self.srpo, "target") if self.srpo.target != "teacher" else None
        first = None
        if tokens is not None and teacher is not None and needs_reference(self.srpo):
            first = teacher.first_states.tokens_of(rows, split_M)
        exact = dw_sdpo.needs_exact_tail(self.srpo.alpha)

        def tail(model: TeacherTokens, place_M: slice, ids_CK: Tensor) -> Tensor | None:
            return model.log_tail(place_M, ids_CK, **options) if exact else None

        def divergence(place_M: slice, ids_CK: Tensor, log_mass_CB: Tensor) -> Tensor:
            teacher_CK, tail_C, first_CB = torch.zeros(ids_CK.shape, device=ids_CK.device), None, None
            if tokens is not None:
                teacher_CK, tail_C = tokens.log_probs(place_M, ids_CK, **options), tail(tokens, place_M, ids_CK)
            if first is not None:
                first_CK = first.log_probs(place_M, ids_CK, **options)
                first_CB = dw_sdpo.with_tail(first_CK, tail(first, place_M, ids_CK))
            return dw_sdpo.divergence(log_mass_CB, teacher_CK, self.srpo.alpha, tail_C, target, first_CB)

        return divergence

    # -------------------------------------------------------------------------------------------------------- helpers

    def _options(self, words: int, micro_batch: TensorDict) -> dict[str, Any]:
        """Of the passes over the vocabulary."""
        chunk_tokens = tokens_in(self.srpo.chunk_megabytes, words)
        return {"temperature": float(micro_batch["temperature"]), "chunk_tokens": chunk_tokens}

    @staticmethod
    def _pass_of(batch: TensorDict) -> str | None:
        return tu.get_non_tensor_data(data=batch, key=PASS, default=None)
