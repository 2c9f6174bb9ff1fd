"""The step, in the figure's order: rollout -> verify -> route -> (GRPO | self-teacher -> DW-SDPO) -> one loss -> EMA.

verl's synchronous trainer calls these stages one after the other (trainer_base.py:562): rollouts arrive verified, are balanced
over the ranks and routed here; the self-teacher has its turn where verl has its reference model's; advantages and the update
follow. What surrounds a step (start, checkpoints, logs, stopping) is lifecycle.py.
"""

import math
from collections.abc import Mapping
from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from srpo_recipe.method.decision import Decision, decide
from srpo_recipe.run import routing_metrics
from srpo_recipe.training import balance, teacher_call, verified
from srpo_recipe.training.fields import IMPORTANCE_CAP, OPTIMIZER_STEPS
from srpo_recipe.training.sampled import SampledTrainer


class RoutedSteps(SampledTrainer):
    """Sample routing and an EMA self-teacher on one of verl's trainers."""

    # of the step under way: the decision, what the reward function gave beside each row's reward, and the rows to show
    decision: Decision
    infos: list[Mapping[str, Any]]
    shown: list[int]

    @property
    def optimizer_steps(self) -> int:
        """Of a batch."""
        return self.config.data.train_batch_size // self.config.actor_rollout_ref.actor.ppo_mini_batch_size

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args, **kwargs) -> KVBatchMeta:
        """rollout -> verify -> route: the verified rows are read, dealt to the ranks, and each is told its route."""
        with marked_timer("route", self.timing_raw, color="yellow"):
            rows = verified.read(batch, self.srpo.needs_teacher)
            metrics.update(routing_metrics.staleness(self.global_steps, batch.tags))
            batch.reorder(verified.settled_order(rows, batch))
            with self.healthy():
                self.health.rewards(self.global_steps, [(row.index, row.session, row.info) for row in rows.values()])
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        with marked_timer("route", self.timing_raw, color="yellow"):
            found, rollouts = verified.in_batch_order(rows, batch, self.tokenizer.eos_token_id)
            self.decision = decide(rollouts, self.routing, self.prompts, self.global_steps)
            agents, self.infos = [row.agent for row in found], [row.info for row in found]
            self.step_log.reason = next((str(info["error"]) for info in self.infos if info.get("error")), "")[:200]
            metrics.update(routing_metrics.routing(self.decision, agents, self.infos))
            if self.old_policy == "update" and self.decision.prompts:
                self._deal_rows(batch, metrics)
            self.shown = self.choose_shown(self.decision)
            verified.write_routes(batch, self.decision, self.shown)
        return batch

    def _deal_rows(self, batch: KVBatchMeta, metrics: dict) -> None:
        """Level the ranks' shares of the routed rows: the rank that updates a row is the one that runs its teacher. With several
        optimiser steps a batch the order stays, since it decides which rows share one.
        """
        length_B = [tag["seq_len"] for tag in batch.tags]
        order, shares = balance.teacher_order(self.decision, length_B, self.data_parallel_size("actor"))
        metrics.update(log_seqlen_unbalance(seqlen_list=length_B, partitions=shares, prefix="global_seqlen"))
        batch.reorder(order)
        self.decision = self.decision.reordered(order)
        self.infos = [self.infos[row] for row in order]

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Nothing where the update's own forward pass gives the old policy."""
        return batch if self.old_policy == "update" else super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """self-teacher: score the routed rows under its prompts. Its states wait on the ranks for the update."""
        routed, forwarded = len(self.decision.prompts), 0
        if routed:
            actor = self.config.actor_rollout_ref
            forwarded = teacher_call.score(
                self.actor_rollout_wg,
                self.decision,
                self.data_parallel_size("ref"),
                self.tokenizer.eos_token_id,
                actor.rollout.temperature,
                actor.ref.log_prob_max_token_len_per_gpu,
                actor.actor.fsdp_config.ulysses_sequence_parallel_size,
                self.shown,
            )
        counts = {"rows_routed": routed, "rows_forwarded": forwarded, "rows_padding": forwarded - routed}
        metrics.update({f"teacher/{name}": count for name, count in counts.items()})
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's, but the mean of a group runs over its rollouts, not over the rows that an agent loop made of them."""
        batch = super()._compute_advantage(batch, metrics)
        rollouts = self.decision.rollouts
        if not bool(rollouts.last_B.all()):
            verified.write_advantages(batch, rollouts, self.config.algorithm)
        return batch

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """verl's would be rows of rollouts of one row each; a batch of more rows has as many optimiser steps all the same. Where
        micro-batches have so many rows, each rank has a multiple of them for every pass.
        """
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        rows = self.optimizer_steps
        if not actor.use_dynamic_bsz:  # the log-prob pass's is alike (settings/refusals.py)
            rows *= actor.ppo_micro_batch_size_per_gpu
            if self.old_policy == "pass":
                rows = math.lcm(rows, rollout.log_prob_micro_batch_size_per_gpu)
        return dp_size * rows

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """GRPO and DW-SDPO in one loss, and the EMA after every optimiser step: in the workers (worker.py, engine.py)."""
        batch.extra_info |= {IMPORTANCE_CAP: self.importance_cap, OPTIMIZER_STEPS: self.optimizer_steps}
        batch = super()._update_actor(batch, metrics)
        with self.healthy():
            rollouts = self.decision.rollouts
            self.health.update(self.global_steps, metrics, rollouts.index_B[rollouts.real_B].tolist())
        self.write_shown(batch, self.decision, self.shown, self.infos)
        return batch


@register_trainer("srpo")
class SRPOTrainer(RoutedSteps, PPOTrainerSync):
    """verl's synchronous trainer with sample routing and an EMA self-teacher."""

    MODE = "sync"


@register_trainer("srpo_colocate_async")
class SRPOAsyncTrainer(RoutedSteps, PPOTrainerColocateAsync):
    """The same on verl's trainer of rollouts that cross updates: those that are not done when a batch is full are stopped and
    continued under the next weights, on the same devices. Each rollout has the log-probs of the versions that sampled it, by
    which the rollout correction weighs it on either route.
    """

    MODE = "colocate_async"
