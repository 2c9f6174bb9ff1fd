"""The step, in the figure's order: rollout -> verify -> route -> (GRPO | self-teacher -> DW-SDPO) -> one loss -> EMA.

A synchronous verl trainer with two stages of its own: `_route` runs as soon as the verified rollouts are balanced over the
ranks, `_run_self_teacher` before the advantages. Everything else is verl's.
"""

import logging
import zlib
from dataclasses import dataclass

import numpy as np
import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from srpo_recipe.eval.validation import validation_metrics
from srpo_recipe.method.demonstrations import choose_demonstrations, has_correct_sibling
from srpo_recipe.method.grpo import group_advantages
from srpo_recipe.method.route import Route, route_samples
from srpo_recipe.method.self_teacher import TeacherPromptBuilder
from srpo_recipe.records import metrics_file
from srpo_recipe.run import routing_metrics, step_log, stop
from srpo_recipe.settings.read import from_plain
from srpo_recipe.training import balance
from srpo_recipe.training.watch.trainer_watch import Watchdog
from srpo_recipe.training.worker import (
    DISTILL,
    POLICY,
    TEACHER_ENTROPY,
    TEACHER_LOG_PROBS,
    TEACHER_ROW,
    TOP_IDS,
    SRPOWorker,
)

logger = logging.getLogger(__name__)


@register_adv_est("srpo")
def srpo_advantage(token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config=None, **_):
    """grpo.group_advantages under verl's own name: reward of a rollout minus its group's mean, on each of its tokens.

    token_level_rewards, response_mask: [B, T]; index: the prompt's uid of each rollout; config: algorithm section, whose
    norm_adv_by_std_in_grpo asks for the division by the standard deviation. Returns (advantages, returns), both [B, T].
    """
    _, group = np.unique(np.asarray(index).astype(str), return_inverse=True)
    by_std = bool(config.get("norm_adv_by_std_in_grpo", False)) if config is not None else False
    advantage_B = group_advantages(token_level_rewards.sum(-1), torch.from_numpy(group), normalize_by_std=by_std)
    advantage_BT = advantage_B.unsqueeze(-1) * response_mask
    return advantage_BT, advantage_BT


@dataclass
class RoutedBatch:
    """What `_route` decided for the rows of a batch, in the batch's order."""

    reward_B: Tensor
    correct_B: Tensor
    teacher_B: Tensor
    group_B: Tensor
    real_B: Tensor  # False for verl's padding rows
    length_B: Tensor
    reward_infos: list[dict]  # what the reward function gave beside the reward
    agent_metrics: list[dict]  # of verl's agent loop, for each row: seconds of generation and of verification
    route: Route
    teacher_prompts: dict[
        int, list[int]
    ]  # row -> token ids of the teacher's prompt, for the rows on the distillation route
    demonstration_lengths: list[int]  # tokens
    shortened: int
    rerouted: int

    def reorder(self, order: list[int]) -> None:
        """Follow the batch into another order of its rows."""
        index_B = torch.tensor(order)
        for name in ("reward_B", "correct_B", "teacher_B", "group_B", "real_B", "length_B"):
            setattr(self, name, getattr(self, name)[index_B])
        self.route = Route(self.route.policy_B[index_B], self.route.distill_B[index_B])
        self.reward_infos = [self.reward_infos[row] for row in order]
        self.agent_metrics = [self.agent_metrics[row] for row in order]
        prompts = self.teacher_prompts
        self.teacher_prompts = {place: prompts[row] for place, row in enumerate(order) if row in prompts}


def row_seed(seed: int, step: int, index: int, session: int) -> int:
    """Seed of one rollout's sibling choice: from what it is, not from where it lies in the batch."""
    return zlib.crc32(f"{seed}/{step}/{index}/{session}".encode())


@register_trainer("srpo")
class SRPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer with sample routing and an EMA self-teacher."""

    routed: RoutedBatch  # of the current step, set by `_route`

    def __init__(self, config):
        self.srpo = from_plain(config.srpo)
        # verl's name for taking the old log-probs from elsewhere than a pass of their own
        self.one_forward = config.algorithm.rollout_correction.bypass_mode
        self.step_log = step_log.StepLog(config, self.srpo)
        super().__init__(config)

    # verl's base class compares this name with "sync" in six places (trainer_base.py:153, 731, 902, 912, 1004, 1499); a
    # synchronous trainer under another name would get the asynchronous replay buffer.
    @property
    def trainer_mode(self) -> str:
        return "sync"

    @trainer_mode.setter
    def trainer_mode(self, value: str) -> None:
        assert value == "srpo", f"trainer.v1.trainer_mode={value} selects another trainer"

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        # verl builds a second model only for a KL term; the self-teacher is that model, without the KL term.
        pool = self.mapping.pop(Role.ActorRollout)
        del self.role_worker_mapping[Role.ActorRollout]
        role = Role.ActorRolloutRef if self.srpo.needs_teacher else Role.ActorRollout
        self.role_worker_mapping[role] = ray.remote(SRPOWorker)
        self.mapping[role] = pool

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.srpo.poll_seconds
        return buffer

    def _setup(self):
        super()._setup()
        chat_options = self.config.data.get("apply_chat_template_kwargs") or {}
        teacher = self.srpo.teacher
        self.prompts = TeacherPromptBuilder(
            self.tokenizer, teacher.template, teacher.feedback_template, teacher.max_prompt_tokens, chat_options
        )
        self.watchdog = Watchdog(self.llm_server_manager, self.srpo.stall_seconds, before_exit=self._flush_logs)

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.resumed_step = self.saved_step = self.global_steps

    def _save_checkpoint(self):
        super()._save_checkpoint()
        self.saved_step = self.global_steps

    def on_init_end(self):
        with self.watchdog.guard("first weight sync"):
            super().on_init_end()

    def fit(self, agent_loop_manager):
        with self.watchdog.guard("start of training"):
            super().fit(agent_loop_manager)
        self.watchdog.stop()

    def _flush_logs(self):
        if getattr(self, "logger", None) is not None:
            self.logger.finish(exit_code=1)

    def on_validate_begin(self):
        self.watchdog.stage = f"validation after step {self.global_steps}"
        self._open_metrics()

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        # of verl's own numbers only those of the turns: best@k and maj@k of the evaluation take the place of its resampling
        turns = super()._val_metrics_update([], [], {}, sample_turns)
        expected, seed = expected_acc_counts or {}, self.srpo.seed
        return turns | validation_metrics(
            data_sources, sample_uids, reward_extra_infos_dict, expected, self.srpo.correct_threshold, seed
        )

    def on_train_begin(self):
        self._open_metrics()

    def _open_metrics(self):
        """Add our JSON lines to verl's loggers. Its own file logger truncates the file of the run that is resumed."""
        if "jsonl" not in self.logger.logger:
            path = f"{self.config.run.dir}/metrics.jsonl"
            self.logger.logger["jsonl"] = metrics_file.JsonLines(path, self.resumed_step)

    def on_sample_begin(self):
        self.watchdog.stage = f"rollouts of step {self.global_steps}"
        super().on_sample_begin()

    def on_sample_end(self):
        # verl counts the rollouts that a dead engine lost as finished and would train on the others
        self.watchdog.check()
        self.watchdog.stage = f"scoring and update of step {self.global_steps}"
        super().on_sample_end()

    def on_step_end(self):
        if self.global_steps < self.total_training_steps and stop.asked(self.config):
            self._stop_after_this_step()
        with self.watchdog.guard(f"weight sync after step {self.global_steps}"):
            super().on_step_end()

    def _stop_after_this_step(self):
        if self.saved_step != self.global_steps:
            with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                self._save_checkpoint()
        stop.confirm(self.config, self.global_steps)
        # verl's loop asks this before the next step (trainer_base.py:467), when this one's metrics are written
        self.config.trainer.total_epochs = 0

    def _balance_batch(self, batch: KVBatchMeta, metrics, *args, **kwargs):
        self._sort_rows(batch)
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        with marked_timer("route", self.timing_raw, color="yellow"):
            self._route(batch)
            if self.one_forward and self.routed.teacher_prompts:
                self._deal_rows(batch, metrics)
        return batch

    def _deal_rows(self, batch: KVBatchMeta, metrics: dict) -> None:
        """Level the ranks' shares of the routed rows: the rank that updates a row is the one that runs its teacher."""
        prompts, length_B = self.routed.teacher_prompts, [tag["seq_len"] for tag in batch.tags]
        response_B = self.routed.length_B.tolist()
        teacher_B = [len(prompts[row]) + response if row in prompts else 0 for row, response in enumerate(response_B)]
        shares = balance.deal(teacher_B, length_B, self._data_parallel_size("actor"))
        metrics.update(log_seqlen_unbalance(seqlen_list=length_B, partitions=shares, prefix="global_seqlen"))
        order = [row for share in shares for row in share]
        batch.reorder(order)
        self.routed.reorder(order)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Nothing with one optimiser step a batch: the update's own forward pass gives them."""
        return batch if self.one_forward else super()._compute_old_log_prob(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        correction = self.config.algorithm.rollout_correction
        batch.extra_info["importance_cap"] = correction.rollout_is_threshold if correction.rollout_is else None
        return super()._update_actor(batch, metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """The self-teacher's forward pass has to come before the update and after the student's ids: here."""
        rows = self.routed.teacher_prompts
        metrics.update(routing_metrics.routing(self.routed))
        with marked_timer("teacher", self.timing_raw, color="olive"):
            forwarded = self._run_self_teacher(batch) if rows else 0
        padding = forwarded - len(rows)
        metrics.update(
            {"teacher/rows_routed": len(rows), "teacher/rows_forwarded": forwarded, "teacher/rows_padding": padding}
        )
        return super()._compute_advantage(batch, metrics)

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        timing_raw["adv"] -= timing_raw["teacher"]
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        self.step_log.write(global_steps, self.total_training_steps, metrics, timing_raw)

    def _sort_rows(self, batch: KVBatchMeta) -> None:
        """Order the rows by prompt and rollout number. They come in the order in which rollouts finished, under random uids,
        and the order decides which rows share a mini-batch: a resumed run has to form the same ones.
        """
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])
        place = [
            (int(index), *self._split_key(key)[::-1]) for index, key in zip(data["index"], batch.keys, strict=True)
        ]
        batch.reorder(sorted(range(len(place)), key=place.__getitem__))

    def _route(self, batch: KVBatchMeta) -> None:
        """Decide what each rollout learns from, and build the teacher prompts of those that learn from the teacher."""
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["rm_scores", "responses", "raw_prompt", "index", "extra_fields", "metrics"],
        )
        real_B = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        uids, sessions = zip(*(self._split_key(key) for key in batch.keys), strict=True)
        group_B = torch.from_numpy(np.unique(uids, return_inverse=True)[1])
        reward_B = torch.stack([row.sum() for row in data["rm_scores"].unbind()]).float()
        length_B = data["responses"].offsets().diff()
        correct_B = (reward_B >= self.srpo.correct_threshold) & real_B
        index = [int(value) for value in data["index"]]
        seeds = [
            row_seed(self.srpo.seed, self.global_steps, i, s) for i, s in zip(index, sessions, strict=True)
        ]  # fmt: skip
        sibling_B = choose_demonstrations(
            self.srpo.teacher.demonstration, correct_B, group_B, length_B, torch.tensor(sessions), torch.tensor(seeds)
        )
        reward_infos = [(getattr(row, "data", row) or {}).get("reward_extra_info", {}) for row in data["extra_fields"]]
        feedback = self._feedback(reward_infos)
        teacher_B = has_correct_sibling(correct_B, group_B) & (self.srpo.teacher.feedback != "replace")
        teacher_B = (teacher_B | torch.tensor([text is not None for text in feedback])) & real_B
        route = route_samples(self.srpo.route, correct_B, teacher_B, self.srpo.mix)
        self.routed = RoutedBatch(
            reward_B=reward_B,
            correct_B=correct_B,
            teacher_B=teacher_B,
            group_B=group_B,
            real_B=real_B,
            length_B=length_B,
            reward_infos=reward_infos,
            agent_metrics=[getattr(row, "data", row) for row in data["metrics"]],
            route=route,
            teacher_prompts={},
            demonstration_lengths=[],
            shortened=0,
            rerouted=0,
        )
        self._build_teacher_prompts(data, sibling_B, feedback)
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({POLICY: route.policy_B, DISTILL: route.distill_B}, batch_size=len(batch.keys)),
        )

    @staticmethod
    def _split_key(key: str) -> tuple[str, int]:
        """(prompt's uid, number of the rollout) of verl's key {uid}_{session}_{output}."""
        uid, session, output = key.rsplit("_", 2)
        if output != "0":
            raise NotImplementedError(
                f"rollout {key} has several outputs; routing is defined for agent loops with one output a rollout"
            )
        return uid, int(session)

    def _feedback(self, reward_infos: list[dict]) -> list[str | None]:
        """The verifier's text for each rollout, where that source is switched on and the verifier gave one."""
        if self.srpo.teacher.feedback == "off":
            return [None] * len(reward_infos)
        return [info.get("feedback") or None for info in reward_infos]

    def _build_teacher_prompts(self, data: TensorDict, sibling_B: Tensor, feedback: list[str | None]) -> None:
        """Fill self.routed.teacher_prompts; a row whose prompt cannot fit goes back to the policy gradient, and is counted."""
        routed, responses = self.routed, data["responses"].unbind()
        messages = [list(chat) for chat in data["raw_prompt"]]
        for row in torch.nonzero(routed.route.distill_B > 0).flatten().tolist():
            sibling = int(sibling_B[row])
            shown = None
            if sibling >= 0 and self.srpo.teacher.feedback != "replace":
                shown = self.prompts.demonstration(responses[sibling].tolist())
            prompt = self.prompts.build(self._with_system(messages[row]), shown, feedback[row])
            if prompt is None or (prompt.shortened and self.srpo.teacher.overflow == "reroute"):
                routed.route.policy_B[row], routed.route.distill_B[row] = 1.0, 0.0
                routed.rerouted += 1
                continue
            routed.teacher_prompts[row] = prompt.ids
            routed.shortened += prompt.shortened
            if shown is not None:
                routed.demonstration_lengths.append(int(routed.length_B[sibling]))

    def _with_system(self, messages: list[dict]) -> list[dict]:
        from srpo_recipe.method.self_teacher import with_system_prompt

        return with_system_prompt(messages, self.srpo.system_prompt)

    def _run_self_teacher(self, batch: KVBatchMeta) -> int:
        """Score the routed rows under the teacher's prompts and hand the result to the update. Returns the rows forwarded.

        Only routed rows are sent, as many to every rank; what is missing is filled up with rows of two tokens.
        """
        rows = list(self.routed.teacher_prompts)
        known = [] if self.one_forward else [TOP_IDS]
        fields = tq.kv_batch_get(
            keys=[batch.keys[row] for row in rows],
            partition_id=batch.partition_id,
            select_fields=["responses", *known],
        )
        samples = [
            {"prompt": self.routed.teacher_prompts[row], "response": response}
            for row, response in zip(rows, fields["responses"].unbind(), strict=True)
        ]
        for sample, ids in zip(samples, fields[TOP_IDS].unbind() if known else (), strict=bool(known)):
            sample["ids"] = ids
        ranks = self._data_parallel_size("ref")
        if self.one_forward:
            shares = balance.by_rank(rows, len(batch.keys), ranks)
        else:
            shares = balance.equal_work([len(row["prompt"]) + len(row["response"]) for row in samples], ranks)
        filler = self.tokenizer.eos_token_id
        padding = {"prompt": [filler], "response": torch.tensor([filler])}
        if known:
            padding["ids"] = samples[0]["ids"][: len(samples[0]["ids"]) // len(samples[0]["response"])]
        order = [
            (place, samples[place]) if place is not None else (None, padding) for share in shares for place in share
        ]
        scores = self._score([sample for _, sample in order])
        self._attach(
            batch, {rows[place]: score for (place, _), score in zip(order, scores, strict=True) if place is not None}
        )
        return len(order)

    def _score(self, samples: list[dict]) -> list[dict[str, Tensor]]:
        """Run `SRPOWorker.compute_teacher` on the samples, in this order; returns the fields that it computed for each.

        They go straight to the workers: a way through TransferQueue would add four calls to it to every step.
        """
        prompts = [torch.tensor(sample["prompt"]) for sample in samples]
        full = [torch.cat([prompt, sample["response"]]) for prompt, sample in zip(prompts, samples, strict=True)]

        def jagged(tensors: list[Tensor]) -> Tensor:
            return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)

        masks = jagged([torch.ones_like(sample["response"]) for sample in samples])
        fields = {
            "input_ids": jagged(full),
            "position_ids": jagged([torch.arange(len(ids)) for ids in full]),
            "prompts": jagged(prompts),
            "responses": jagged([sample["response"] for sample in samples]),
            "response_mask": masks,
            "loss_mask": masks,
            DISTILL: torch.ones(len(samples)),
        }
        if self.one_forward:
            computed: tuple[str, ...] = (TEACHER_ENTROPY,)
            fields[TEACHER_ROW] = torch.arange(len(samples))
        else:
            computed = (TEACHER_ENTROPY, TEACHER_LOG_PROBS)
            fields[TOP_IDS] = jagged([sample["ids"] for sample in samples])
        data = TensorDict(fields, batch_size=len(samples))
        budget = self.config.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu
        tu.assign_non_tensor(
            data,
            temperature=self.config.actor_rollout_ref.rollout.temperature,
            calculate_entropy=False,
            use_dynamic_bsz=True,
            max_token_len_per_gpu=max(budget, max(map(len, full))),
        )
        output = self.actor_rollout_wg.compute_teacher(data)
        columns = [output[name].unbind() for name in computed]
        scores = [dict(zip(computed, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.one_forward:
            scores = [{**score, TEACHER_ROW: torch.tensor([place])} for place, score in enumerate(scores)]
        return scores

    def _attach(self, batch: KVBatchMeta, scores: dict[int, dict[str, Tensor]]) -> None:
        """Write the teacher's fields on every row of the batch (verl drops a field that only some rows carry)."""
        first = next(iter(scores.values()))
        dummy = {name: value.new_full((1,), -1) for name, value in first.items()}
        rows = [scores.get(row, dummy) for row in range(len(batch.keys))]
        fields = {
            name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged)
            for name in first
            if name != TEACHER_ROW
        }
        if TEACHER_ROW in first:
            fields[TEACHER_ROW] = torch.cat([row[TEACHER_ROW] for row in rows])
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
        )

    def _data_parallel_size(self, mesh: str) -> int:
        group = self.actor_rollout_wg
        if mesh not in group._dispatch_info:
            group._dispatch_info[mesh] = group._query_dispatch_info(mesh)
        return max(group._dispatch_info[mesh]) + 1
