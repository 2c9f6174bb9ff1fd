"""The trainer's part in the samples of a run: a few rollouts of every step and validation are written with their tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from transfer_queue import KVBatchMeta
from verl.utils.debug import marked_timer

from srpo_recipe.method.decision import Decision
from srpo_recipe.records import samples
from srpo_recipe.run import loggers, shown
from srpo_recipe.run.say import say
from srpo_recipe.run.token_texts import TokenTexts
from srpo_recipe.training import verified
from srpo_recipe.training.lifecycle import LifecycleTrainer


class SampledTrainer(LifecycleTrainer):
    """Writes RUN/samples (records/samples.py), and shows the same rollouts in TensorBoard and W&B: `run.samples` groups of a
    step, and as many questions of a validation.
    """

    def __init__(self, config):
        self.sampled_groups = config.run.samples
        self.held_out: tuple[Sequence[str], Sequence[str], Sequence[float]] = ([], [], [])  # of the last validation
        super().__init__(config)

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.token_texts = TokenTexts(self.tokenizer)
        samples.forget_after(self.config.run.dir, self.resumed_step)

    def choose_shown(self, decision: Decision) -> list[int]:
        """The rows of this step that a reader will see."""
        return shown.shown_rows(decision.rollouts, self.sampled_groups, self.srpo.seed, self.global_steps)

    def write_shown(
        self, batch: KVBatchMeta, decision: Decision, rows: Sequence[int], infos: Sequence[Mapping[str, Any]]
    ) -> None:
        """After the update: write these rows with what the workers saw of their tokens. infos: of all rows of the batch, what
        the reward function gave beside the reward.
        """
        if not rows:
            return
        with marked_timer("samples", self.timing_raw, color="gray"):
            seen: dict = {}
            for of_rank in self.actor_rollout_wg.seen_tokens():
                seen |= of_rank
            prompts = verified.student_prompts(batch, rows)
            self._write(samples.TRAIN, shown.rows(decision, rows, prompts, infos, seen, self.token_texts))

    def _maybe_log_val_generations(self, inputs, outputs, scores):
        """verl gives the texts of a validation here, and next, in the same order, `_val_metrics_update` the rest of it."""
        super()._maybe_log_val_generations(inputs, outputs, scores)
        self.held_out = inputs, outputs, scores

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        prompts, responses, rewards = self.held_out
        self.held_out = [], [], []
        if self.sampled_groups:
            threshold, seed = self.srpo.correct_threshold, self.srpo.seed
            uids, infos = list(map(str, sample_uids)), reward_extra_infos_dict
            rows = shown.held_out_rows(uids, prompts, responses, rewards, infos, self.sampled_groups, seed, threshold)
            self._write(samples.HELD_OUT, rows)
        return super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts
        )

    def _write(self, split: str, rows: list[dict]) -> None:
        """To the run's folder and its loggers. A file that cannot be written is a warning, no error: the run itself is well."""
        try:
            samples.write(self.config.run.dir, self.global_steps, split, rows)
        except OSError as error:
            say(f"WARNING the samples of step {self.global_steps} could not be written: {error}")
        loggers.log_samples(self.logger.logger, split, rows, self.global_steps)
