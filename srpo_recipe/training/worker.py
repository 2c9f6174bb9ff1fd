"""The rim inside verl's actor: the engine, the loss function and the worker that hold the method together.

With one optimiser step a batch, the default, the trainer calls `compute_teacher` (ours: the rows on the distillation route under
the teacher's prompt; its final hidden states stay here) and `update_actor` (the step, followed by the EMA): the old policy is
the current one, so its log-probs and top ids come from the update's own forward pass, and the teacher's logits at those ids
from the kept states. With several steps verl's `compute_log_prob` comes first, and the ids are read off on the way.

Per-token fields travel as jagged tensors with one entry per response token (times K, flattened); rows off the route carry one
dummy token, since a field must exist on every row.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.trainer.config import CheckpointConfig
from verl.trainer.ppo.core_algos import register_policy_loss
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from srpo_recipe.method import dw_sdpo, logits, student_logits, teacher_logits
from srpo_recipe.method.ema import ema_distance, ema_update
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.loss import Totals, count_totals, distill_weight, routed_part
from srpo_recipe.records import checkpoint
from srpo_recipe.settings.read import from_plain
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.training.watch.sync_watch import SyncWatch

MODEL_TYPE = (
    "srpo_language_model"  # key of RoutedEngine in verl's engine registry; it builds an ordinary language model
)

# Fields that the trainer writes and the passes below read or add (TransferQueue, verl's data plane).
POLICY, DISTILL = "route_policy", "route_distill"  # [B] route weights
TOP_IDS = "student_top_ids"  # jagged [R * K] int32
TEACHER_LOG_PROBS, TEACHER_ENTROPY = "teacher_log_probs", "teacher_entropy"  # jagged [R * K], [R] float32
TEACHER_ROW = "teacher_row"  # [B] int64: under which number the teacher's rank keeps the row's states, -1 for none


@register_policy_loss("srpo")
def srpo_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The policy-gradient part under verl's own name: grpo.clipped_policy_loss, summed by loss.routed_part.

    All tensors [B, T]. The denominator is config.global_batch_info["batch_num_tokens"], which `routed_ppo_loss` sets to the
    tokens on either route of the whole mini-batch; verl averages gradients over ranks, hence the factor dp_size.
    """
    loss_BT, clipped_BT, dual_BT = clipped_policy_loss(
        log_prob,
        old_log_prob,
        advantages,
        config.clip_ratio_low,
        config.clip_ratio_high,
        config.get("clip_ratio_c", 3.0),
    )
    mask_BT = response_mask.bool()
    info = config.global_batch_info
    tokens = info.get("batch_num_tokens")
    importance_BT = torch.ones_like(loss_BT) if rollout_is_weights is None else rollout_is_weights
    loss = routed_part(loss_BT, importance_BT, mask_BT, float(mask_BT.sum()) if tokens is None else tokens)
    valid = mask_BT.sum().clamp(min=1)
    metrics = {
        "policy/clip_fraction": ((clipped_BT & mask_BT).sum() / valid).item(),
        "policy/dual_clip_fraction": ((dual_BT & mask_BT).sum() / valid).item(),
        "policy/approx_kl": (torch.where(mask_BT, old_log_prob - log_prob, 0.0).sum() / valid).detach().item(),
    }
    return loss * info.get("dp_size", 1), metrics


def _scatter_routed(values_N: Tensor, routed_B: Tensor, length_B: Tensor, width: int) -> Tensor:
    """Lay the tokens of the routed rows, in order, into [B, width]; 0 elsewhere."""
    position_T = torch.arange(width, device=values_N.device)
    place_BT = routed_B.unsqueeze(-1) & (position_T < length_B.unsqueeze(-1))
    return torch.zeros(place_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(place_BT, values_N)


def _gather_routed(field: Tensor, routed_B: Tensor) -> Tensor:
    """Values of the routed rows of a jagged field, in order: the inverse of the dummy-token convention."""
    return torch.cat([row for row, routed in zip(field.unbind(), routed_B.tolist(), strict=True) if routed])


def _routing(data: TensorDict) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mask [B, T], response lengths [B], policy weights [B], distillation weights [B], teacher entropy [B, T])."""
    mask_BT = data["response_mask"].to_padded_tensor(0).bool()
    length_B = data["responses"].offsets().diff()
    policy_B, distill_B = (data[key].reshape(-1).float() for key in (POLICY, DISTILL))
    entropy_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    if (distill_B > 0).any():
        values_N = _gather_routed(data[TEACHER_ENTROPY], distill_B > 0)
        entropy_BT = _scatter_routed(values_N, distill_B > 0, length_B, mask_BT.shape[-1])
    return mask_BT, length_B, policy_B, distill_B, entropy_BT


def count_batch(data: TensorDict, srpo: SRPOConfig) -> Tensor:
    """`count_totals` of a batch of verl's fields, with the number of rows on either route appended: float64 [4]."""
    mask_BT, _, policy_B, distill_B, entropy_BT = _routing(data)
    totals = count_totals(mask_BT, policy_B, distill_B, dw_sdpo.confidence(entropy_BT, srpo.beta))
    rows = (mask_BT.any(-1) & ((policy_B > 0) | (distill_B > 0))).sum().double()
    return torch.cat([totals, rows.reshape(1)])


def routed_ppo_loss(
    config: ActorConfig, srpo: SRPOConfig, model_output: dict, data: TensorDict, dp_group=None
) -> tuple[Tensor, dict]:
    """The loss of one micro-batch (paper, section 3.3): verl's `ppo_loss` on the policy route plus the distillation part.

    The policy part keeps verl's optional terms; the route weight enters through the advantage, in which the clipped surrogate
    is homogeneous. data["srpo_totals"] are the sums over the whole mini-batch that RoutedEngine counted.
    """
    mask_BT, length_B, policy_B, distill_B, entropy_BT = _routing(data)
    confidence_BT = dw_sdpo.confidence(entropy_BT, srpo.beta)
    counts = data["srpo_totals"]
    totals = Totals.from_tensor(counts[:3])
    if srpo.weight_scope == "micro_batch":
        local = Totals.from_tensor(count_totals(mask_BT, policy_B, distill_B, confidence_BT))
        totals = replace(totals, distill_tokens=local.distill_tokens, confidence=local.confidence)
    weight_B = torch.ones_like(policy_B)
    denominator = max(totals.tokens, 1.0)
    if srpo.average == "sequence":
        weight_B = 1.0 / mask_BT.sum(-1).clamp(min=1)
        denominator = max(float(counts[3]), 1.0)

    policy_data = data.copy()
    sampled = {}
    if "old_log_probs" not in data:
        sampled = _correct_on_the_spot(policy_data, model_output["log_probs"])
    per_token = torch.repeat_interleave(policy_B * weight_B, length_B)
    on_policy = torch.repeat_interleave(policy_B > 0, length_B)
    for key, factor in (("advantages", per_token), ("response_mask", on_policy.to(data["response_mask"].dtype))):
        rows = (data[key].values() * factor).split(length_B.tolist())
        policy_data[key] = torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
    tu.assign_non_tensor(policy_data, batch_num_tokens=denominator)
    policy_loss, metrics = ppo_loss(config, model_output, policy_data, dp_group)

    importance_BT = torch.ones_like(confidence_BT)
    if "rollout_is_weights" in policy_data:
        importance_BT = policy_data["rollout_is_weights"].to_padded_tensor(0.0)
    divergence_BT = _scatter_routed(model_output["divergence"], distill_B > 0, length_B, mask_BT.shape[-1])
    distill_BT = distill_weight(confidence_BT, distill_B * weight_B, importance_BT, totals)
    weight_BT = confidence_BT / totals.mean_confidence
    dp_size = data["dp_size"]
    distill_loss = routed_part(divergence_BT, distill_BT, mask_BT, denominator) * dp_size
    metrics.update(
        _loss_metrics(
            mask_BT, policy_B, distill_B, entropy_BT, weight_BT, divergence_BT.detach(), importance_BT,
            Totals.from_tensor(counts[:3]), dp_size, distill_loss, sampled,
        )
    )  # fmt: skip
    return policy_loss + distill_loss, metrics


def _correct_on_the_spot(data: TensorDict, log_probs: Tensor) -> dict[str, Tensor]:
    """With one optimiser step a batch the old policy is the current one: add its log-probs and the rollout correction to `data`.

    log_probs: verl's, jagged over prompt and response, attached to the graph. data["importance_cap"]: the correction's
    threshold, None for none; data["rollout_log_probs"]: what vLLM sampled with, jagged over the response. Returns what the log
    shows of the samples, [B, T] each: minus the log-prob, whose mean estimates the entropy, and how far off vLLM was.
    """
    old_BT = no_padding_2_padding(log_probs.detach(), data)
    length_B = data["responses"].offsets().diff().tolist()

    def jagged(values_BT: Tensor) -> Tensor:
        rows = [row[:length] for row, length in zip(values_BT, length_B, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    data["old_log_probs"] = jagged(old_BT)
    sampled = {"entropy_of_samples": -old_BT}
    if "rollout_log_probs" in data:
        rollout_BT = data["rollout_log_probs"].to_padded_tensor(0.0)
        sampled["rollout_probs_diff"] = (old_BT.exp() - rollout_BT.exp()).abs()
    cap = tu.get_non_tensor_data(data, "importance_cap", None)
    if cap is not None:
        mask_BT = data["response_mask"].to_padded_tensor(0)
        weights_BT, _ = compute_rollout_correction_weights(old_BT - rollout_BT, mask_BT, "token", cap)
        data["rollout_is_weights"] = jagged(weights_BT)
    return sampled


def _loss_metrics(
    mask_BT,
    policy_B,
    distill_B,
    entropy_BT,
    weight_BT,
    divergence_BT,
    importance_BT,
    totals,
    dp_size,
    distill_loss,
    sampled,
) -> dict[str, Metric]:
    """Means over the whole mini-batch, as shares that add up over micro-batches and ranks."""
    distill_BT = mask_BT & (distill_B > 0).unsqueeze(-1)
    policy_BT = mask_BT & (policy_B > 0).unsqueeze(-1)
    distill_tokens, tokens = max(totals.distill_tokens, 1.0), max(totals.tokens, 1.0)

    def mean(values_BT: Tensor, where_BT: Tensor, count: float) -> Metric:
        total = torch.where(where_BT, values_BT, 0.0).sum() / count * dp_size
        return Metric(AggregationType.SUM, total)

    on_route_BT = policy_BT | distill_BT
    ones = torch.ones_like(weight_BT)
    second_moment = mean(weight_BT.square(), distill_BT, distill_tokens)
    return {
        "distill/loss": Metric(AggregationType.SUM, distill_loss.detach()),
        "distill/divergence": mean(divergence_BT, distill_BT, distill_tokens),
        "distill/teacher_entropy": mean(entropy_BT, distill_BT, distill_tokens),
        "distill/weight_mean": mean(weight_BT, distill_BT, distill_tokens),
        "distill/weight_square": second_moment,
        "distill/weight_largest": Metric(AggregationType.MAX, torch.where(distill_BT, weight_BT, 0.0).amax()),
        "distill/token_share": mean(ones, distill_BT, tokens),
        "policy/token_share": mean(ones, policy_BT, tokens),
        "policy/importance": mean(importance_BT, on_route_BT, tokens),
        **{f"policy/{name}": mean(values_BT, on_route_BT, tokens) for name, values_BT in sampled.items()},
    }


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class RoutedEngine(FSDPEngineWithLMHead):
    """verl's FSDP language-model engine, with the student's ids, the teacher's statistics, the divergence and the EMA.

    As the forward-only teacher it differs from verl's reference model in two ways: it stays on the device beside the actor
    (verl parks a forward-only FSDP2 model in pinned host memory, transformer_impl.py:459), and its weights are averaged.
    """

    srpo: SRPOConfig  # set by SRPOWorker.init_model

    def __init__(self, model_config, engine_config, optimizer_config, checkpoint_config):
        model_config.model_type = "language_model"
        self.is_teacher = engine_config.forward_only
        if self.is_teacher:
            engine_config = replace(engine_config, forward_only=False)
            checkpoint_config = CheckpointConfig(save_contents=["model"], load_contents=["model"])
        super().__init__(model_config, engine_config, optimizer_config, checkpoint_config)
        self.teacher: RoutedEngine | None = None
        self.teacher_head_VH: Tensor | None = None  # while an update runs
        self.head_rows: Tensor | None = (
            None  # of the micro-batch under way: the tokens whose logits are wanted, None for all
        )
        self.head_input: Tensor | None = None  # what the output layer was given last; the teacher's only
        # row number -> (hidden states [R, H], statistics) of the routed responses, from the teacher's pass to the update's end
        self.kept: dict[int, tuple[Tensor, teacher_logits.TeacherStatistics]] = {}

    def initialize(self):
        super().initialize()
        self.module.get_output_embeddings().register_forward_pre_hook(self._before_head)

    def _before_head(self, _, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Give the output layer the wanted tokens alone: a prompt's logits are neither needed nor made."""
        hidden = inputs[0]
        if self.head_rows is not None:
            hidden = hidden.flatten(0, -2)[self.head_rows].unsqueeze(0)
        if self.is_teacher:
            self.head_input = hidden.detach()
        return hidden, *inputs[1:]

    def _build_optimizer(self, module):
        return None if self.is_teacher else super()._build_optimizer(module)

    def _build_lr_scheduler(self, optimizer):
        return None if self.is_teacher else super()._build_lr_scheduler(optimizer)

    def optimizer_step(self):
        """One optimiser step, then the teacher follows (paper: after every step)."""
        grad_norm = super().optimizer_step()
        if self.teacher is not None:
            ema_update(self.teacher.module.parameters(), self.module.parameters(), self.srpo.teacher.ema_rate)
        return grad_norm

    def relative_teacher_distance(self) -> float:
        """|teacher - student| / |student| over all weights of all ranks."""
        assert self.teacher is not None
        sums = torch.stack(ema_distance(self.teacher.module.parameters(), self.module.parameters())).to(get_device_id())
        torch.distributed.all_reduce(sums)
        return float((sums[0] / sums[1]).sqrt())

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        """Count the mini-batch's totals over all ranks before verl cuts it into micro-batches."""
        if not forward_only:
            totals = count_batch(data, self.srpo).to(get_device_id())
            torch.distributed.all_reduce(totals, group=self.get_data_parallel_group())
            tu.assign_non_tensor_data(data, "srpo_totals", tuple(totals.tolist()))
            if TEACHER_ROW in data and Totals.from_tensor(totals[:3]).distill_tokens > 0:
                assert self.teacher is not None
                self.teacher_head_VH = self.teacher._gathered_head()
        try:
            return super().forward_backward_batch(data, loss_function, forward_only)
        finally:
            self.teacher_head_VH = self.head_rows = self.head_input = None

    def prepare_model_inputs(self, micro_batch: TensorDict):
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        self.head_rows = None
        if not self._verl_reads_logits(micro_batch):
            ids = model_inputs["input_ids"]
            rows = [torch.arange(*span) for span in self._response_spans(micro_batch, ids.shape[1])]
            self.head_rows = torch.cat(rows).to(ids.device)
        return model_inputs, output_args

    @staticmethod
    def _verl_reads_logits(micro_batch: TensorDict) -> bool:
        """Whether verl makes outputs of its own of this pass, from the logits of every token."""
        stage = tu.get_non_tensor_data(data=micro_batch, key="srpo_pass", default=None)
        extras = ("calculate_entropy", "calculate_sum_pi_squared")
        return stage in (None, "student_ids") or any(
            tu.get_non_tensor_data(data=micro_batch, key=key, default=False) for key in extras
        )

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        """What the pass named by `srpo_pass` wants of the logits; verl's own outputs where there is none, or beside it."""
        stage = tu.get_non_tensor_data(data=micro_batch, key="srpo_pass", default=None)
        model_output = {}
        if self._verl_reads_logits(micro_batch):
            model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if stage is None:
            return model_output
        logits_TV = output.logits.flatten(0, -2)
        routed_B = micro_batch[DISTILL].reshape(-1) > 0
        if self.head_rows is None:
            spans = self._response_spans(micro_batch, output.logits.shape[1])
        else:
            ends = micro_batch["responses"].offsets().tolist()
            spans = list(zip(ends[:-1], ends[1:], strict=True))
        routed_spans = [span for span, routed in zip(spans, routed_B.tolist(), strict=True) if routed]
        chunk_tokens = logits.tokens_in(self.srpo.chunk_megabytes, logits_TV.shape[1])
        options: dict[str, Any] = {"temperature": float(micro_batch["temperature"]), "chunk_tokens": chunk_tokens}
        if stage == "student_ids":
            ids_MK = logits.top_ids(logits_TV, self.srpo.top_k, routed_spans, chunk_tokens)
            model_output[TOP_IDS] = self._jagged(ids_MK.int(), routed_B, micro_batch)
        elif stage == "teacher":
            teacher = teacher_logits.teacher_statistics(logits_TV, routed_spans, **options)
            model_output[TEACHER_ENTROPY] = self._jagged(teacher.entropy_N.unsqueeze(-1), routed_B, micro_batch)
            if TEACHER_ROW in micro_batch:
                self._keep(micro_batch, teacher, routed_spans)
            else:
                ids_MK = self._routed_field(micro_batch, TOP_IDS, routed_B).long()
                log_probs_MK = teacher.log_probs(teacher_logits.logits_at(logits_TV, ids_MK, routed_spans, **options))
                model_output[TEACHER_LOG_PROBS] = self._jagged(log_probs_MK, routed_B, micro_batch)
        elif stage == "update":
            if TEACHER_ROW in micro_batch:
                ids_MK = logits.top_ids(logits_TV, self.srpo.top_k, routed_spans, chunk_tokens)
                teacher_MK = self._kept_log_probs(micro_batch[TEACHER_ROW][routed_B], ids_MK, options)
            else:
                ids_MK = self._routed_field(micro_batch, TOP_IDS, routed_B).long()
                teacher_MK = self._routed_field(micro_batch, TEACHER_LOG_PROBS, routed_B)
            log_prob_N, log_mass_MB = student_logits.student_statistics(
                logits_TV,
                micro_batch["responses"].values(),
                ids_MK,
                spans,
                routed_B.tolist(),
                # nothing else reads the logits, unless verl was asked for more
                overwrite_logits=not model_output,
                **options,
            )
            model_output["log_probs"] = self._in_sequences(log_prob_N, micro_batch)
            model_output["divergence"] = dw_sdpo.divergence(log_mass_MB, teacher_MK, self.srpo.alpha)
        return model_output

    def _keep(self, micro_batch: TensorDict, teacher: teacher_logits.TeacherStatistics, spans) -> None:
        """Keep what the update needs to ask for the teacher's logits at ids that only the update will know."""
        assert self.head_input is not None
        hidden_TH = self.head_input.flatten(0, -2)
        lengths = [stop - start for start, stop in spans]
        statistics = zip(*(part.split(lengths) for part in teacher), strict=True)
        for row, (start, stop), found in zip(micro_batch[TEACHER_ROW].tolist(), spans, statistics, strict=True):
            self.kept[row] = hidden_TH[start:stop].clone(), teacher_logits.TeacherStatistics(*found)

    def _kept_log_probs(self, rows: Tensor, ids_MK: Tensor, options: dict) -> Tensor:
        """The teacher's log-probabilities at the ids, from the states that its pass kept for these rows: [M, K]."""
        if not len(rows):
            return torch.zeros(ids_MK.shape, device=ids_MK.device)
        assert self.teacher is not None and self.teacher_head_VH is not None
        hidden, statistics = zip(*(self.teacher.kept[row] for row in rows.tolist()), strict=True)
        teacher = teacher_logits.TeacherStatistics(*(torch.cat(part) for part in zip(*statistics, strict=True)))
        logits_MK = teacher_logits.output_layer_at(torch.cat(hidden), self.teacher_head_VH, ids_MK, **options)
        return teacher.log_probs(logits_MK)

    def _gathered_head(self) -> Tensor:
        """The output layer's weight [V, H] of all ranks, in the dtype of the forward pass. A collective."""
        weight = self.module.get_output_embeddings().weight.detach()
        weight = weight.to(device=get_device_id(), dtype=self._autocast_dtype)
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight

    @staticmethod
    def _response_spans(micro_batch: TensorDict, width: int) -> list[tuple[int, int]]:
        """For each sequence the rows of the flattened logits that predict its response tokens: P - 1 ... P + R - 2.

        verl packs the sequences ([1, total, V]) or pads them on the right ([B, width, V]).
        """
        prompt_B = micro_batch["prompts"].offsets().diff()
        response_B = micro_batch["responses"].offsets().diff()
        if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
            start_B = micro_batch["input_ids"].offsets()[:-1]
        else:
            start_B = torch.arange(len(prompt_B), device=prompt_B.device) * width
        first_B = start_B + prompt_B - 1
        return list(zip(first_B.tolist(), (first_B + response_B).tolist(), strict=True))

    @staticmethod
    def _in_sequences(values_N: Tensor, micro_batch: TensorDict) -> Tensor:
        """Lay values of the response tokens out as verl does its log-probs: one place before the token, jagged, else 0."""
        offset_B = micro_batch["input_ids"].offsets()
        length_B = micro_batch["responses"].offsets().diff()
        first_B = offset_B[1:] - length_B - 1
        steps_N = torch.arange(len(values_N), device=values_N.device)
        done_B = micro_batch["responses"].offsets()[:-1]
        place_N = steps_N + torch.repeat_interleave(first_B - done_B, length_B)
        total = micro_batch["input_ids"].values().shape[0]
        return torch.nested.nested_tensor_from_jagged(
            values_N.new_zeros(total).index_copy(0, place_N, values_N), offset_B
        )

    def _routed_field(self, micro_batch: TensorDict, key: str, routed_B: Tensor) -> Tensor:
        """[N, K] of a flattened jagged field."""
        if not routed_B.any():
            return torch.zeros(0, self.srpo.top_k, device=routed_B.device)
        responses = int((micro_batch["responses"].offsets().diff() * routed_B).sum())
        return _gather_routed(micro_batch[key], routed_B).reshape(responses, -1)

    @staticmethod
    def _jagged(values_NK: Tensor, routed_B: Tensor, micro_batch: TensorDict) -> Tensor:
        """Flatten [N, K] into one jagged row of R * K per routed row and one dummy token per other row."""
        length_B = micro_batch["responses"].offsets().diff()
        parts = iter(values_NK.split((length_B[routed_B]).tolist()))
        dummy = values_NK.new_zeros(values_NK.shape[-1])
        rows = [next(parts).reshape(-1) if routed else dummy for routed in routed_B.tolist()]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


class RoutedTrainingWorker(TrainingWorker):
    """verl's training worker on RoutedEngine."""

    def __init__(self, config):
        super().__init__(replace(config, model_type=MODEL_TYPE))


class SRPOWorker(ActorRolloutRefWorker):
    """verl's actor, rollout and reference worker, its reference model turned into the EMA self-teacher."""

    actor_worker_cls = RoutedTrainingWorker
    ref_worker_cls = RoutedTrainingWorker

    def __init__(self, config: DictConfig, role: str, **kwargs):
        self.srpo = from_plain(config.srpo)
        super().__init__(config, role, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        super().init_model()
        self.actor.engine.srpo = self.srpo
        if self.ref is not None:
            self.ref.engine.srpo = self.srpo
            self.actor.engine.teacher = self.ref.engine
        actor_config = self.loss_fn.keywords["config"]  # verl has built it into its own loss
        self.loss_fn: partial = partial(routed_ppo_loss, actor_config, self.srpo)
        self.actor.set_loss_fn(self.loss_fn)
        self.sync_watch = SyncWatch(self.rollout, self.srpo.stall_seconds)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        """Log-probabilities of all rows and, on the way, the student's top ids of the routed rows."""
        if self.ref is not None:
            tu.assign_non_tensor(data, srpo_pass="student_ids")
        return super().compute_log_prob(data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="ref"))
    def compute_teacher(self, data: TensorDict) -> TensorDict:
        """Score the routed rows' responses under the teacher's prompt: the entropy, and log-probs at the student's ids.

        With one optimiser step a batch the ids are not known yet, and what they will be looked up in stays in the engine.
        """
        self.ref.engine.kept.clear()
        tu.assign_non_tensor(data, srpo_pass="teacher", distillation_only=True, compute_loss=False)
        output = self.ref.infer_batch(data=data)
        return output.cpu() if output is not None else None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """The optimiser steps of one batch; the teacher's distance is measured once after them."""
        # the pass makes the log-probs itself, with the divergence: distillation_only keeps verl from making them too
        tu.assign_non_tensor(data, srpo_pass="update", distillation_only=True)
        output = super().update_actor(data)
        if self.ref is not None:
            self.ref.engine.kept.clear()
            distance = self.actor.engine.relative_teacher_distance()
            if output is not None:
                tu.get(output, "metrics")["ema_distance"] = [distance]
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """The actor as verl saves it, and the teacher beside it."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.ref is not None:
            self.ref.engine.save_checkpoint(
                checkpoint.teacher_path(local_path), None, global_step, max_ckpt_to_keep=max_ckpt_to_keep
            )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """Refuses a checkpoint without the teacher: starting one afresh would silently change the method."""
        if self.ref is not None:
            checkpoint.require_teacher(local_path, self.world_size, self.rank)
            self.ref.engine.load_checkpoint(checkpoint.teacher_path(local_path), None, del_local_after_load)
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
