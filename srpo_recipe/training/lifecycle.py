"""What surrounds a step: how the trainer is built, watched, logged, saved, resumed and stopped."""

from contextlib import contextmanager

import ray
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.debug import marked_timer

from srpo_recipe.eval.validation import validation_metrics
from srpo_recipe.method.self_teacher import TeacherPromptBuilder
from srpo_recipe.records import checkpoint, manifest
from srpo_recipe.records.metrics import dropped
from srpo_recipe.records.metrics_file import JsonLines
from srpo_recipe.run import loggers, stop, sync_gap
from srpo_recipe.run.curve import Curve
from srpo_recipe.run.health import Health, Unhealthy, advice
from srpo_recipe.run.say import END, ENGINE, phase_done, say
from srpo_recipe.run.step_log import StepLog
from srpo_recipe.run.summary import measure
from srpo_recipe.settings.options import routing
from srpo_recipe.settings.read import from_plain, old_policy
from srpo_recipe.settings.refusals import TRAINER_MODES
from srpo_recipe.settings.run import causes
from srpo_recipe.training.fields import NO_CAP
from srpo_recipe.training.watch.refill_limit import RefillLimit
from srpo_recipe.training.watch.report import OTHER, compose, error_text, report
from srpo_recipe.training.watch.trainer_watch import Watchdog
from srpo_recipe.training.worker import SRPOWorker


class LifecycleTrainer(PPOTrainer):
    """One of verl's trainers with a self-teacher beside the actor, our logs, and runs that end clearly."""

    MODE: str  # verl's name of the trainer whose kind this is: sync, colocate_async
    refills: RefillLimit | None = None

    checkpoint_callback: CheckpointCallback

    def __init__(self, config):
        self.srpo = from_plain(config.srpo)
        self.old_policy = old_policy(config)
        correction = config.algorithm.rollout_correction
        self.importance_cap = correction.rollout_is_threshold if correction.rollout_is else NO_CAP
        if self.old_policy == "update":
            # verl would correct old log-probs that are not there yet (trainer_base.py:1765); the update does it (losses.py)
            config.algorithm.rollout_correction = None
        self.step_log = StepLog(config, self.srpo)
        self.health = Health(causes(config), config.run.most_skipped)
        super().__init__(config)
        # verl asks for a second model where a KL term needs it; the self-teacher is that model, without the term
        self.use_reference_policy = self.srpo.needs_teacher

    # verl's base class compares this name with "sync" in six places (trainer_base.py:153, 731, 902, 912, 1004, 1499) and reads
    # the section of that name; a synchronous trainer under another name would get the asynchronous replay buffer.
    @property
    def trainer_mode(self) -> str:
        return self.MODE

    @trainer_mode.setter
    def trainer_mode(self, value: str) -> None:
        assert value in TRAINER_MODES, f"trainer.v1.trainer_mode={value} selects another trainer"

    # ------------------------------------------------------------------------------------------------------- building

    def _init_dataloader(self):
        super()._init_dataloader()
        phase_done("data")

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        pool = self.mapping.pop(Role.ActorRollout)
        del self.role_worker_mapping[Role.ActorRollout]
        second_model = self.srpo.needs_teacher and not self.config.actor_rollout_ref.model.lora_rank
        role = Role.ActorRolloutRef if second_model else Role.ActorRollout
        self.role_worker_mapping[role] = ray.remote(SRPOWorker)
        self.mapping[role] = pool

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.srpo.poll_seconds
        if buffer.refill_fn is not None:
            self.refills = buffer.refill_fn = RefillLimit(buffer, self.config.data.train_batch_size)
        return buffer

    def _setup(self):
        super()._setup()
        teacher, chat_options = self.srpo.teacher, self.config.data.get("apply_chat_template_kwargs") or {}
        self.prompts = TeacherPromptBuilder(
            self.tokenizer, teacher.template, teacher.feedback_template, teacher.max_prompt_tokens, chat_options
        )
        self.routing = routing(self.srpo, self._context() if self.srpo.needs_teacher else None)
        self.watchdog = Watchdog(self.llm_server_manager, self.srpo.stall_seconds, before_exit=self._flush_logs)

    def _context(self) -> int | None:
        """The positions of the model, which the teacher's prompt and a response share; says where they are the tighter limit."""
        context = self.actor_rollout_wg.positions()[0]
        budget, response = self.srpo.teacher.max_prompt_tokens, self.config.data.max_response_length
        if context and context < budget + response:
            say(
                f"The model has {context} positions, less than srpo.teacher.max_prompt_tokens={budget} and "
                f"data.max_response_length={response} together: a teacher's prompt gets what the response leaves of them "
                "(route/shortened and route/rerouted count the prompts that need more)"
            )
        return context

    def data_parallel_size(self, mesh: str) -> int:
        """Ranks of the actor's or the teacher's mesh that hold different rows."""
        group = self.actor_rollout_wg
        if mesh not in group._dispatch_info:
            group._dispatch_info[mesh] = group._query_dispatch_info(mesh)
        return max(group._dispatch_info[mesh]) + 1

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.resumed_step = self.saved_step = self.global_steps

    def _save_checkpoint(self):
        """verl's, written beside its place and put there when it is whole; only then the oldest ones go (records/checkpoint.py).

        Raises RuntimeError, with the cause and the last whole checkpoint, where it cannot be written.
        """
        trainer, step, workers = self.config.trainer, self.global_steps, self.actor_rollout_wg
        folder = trainer.default_local_dir
        workers.discard(folder, step)
        try:
            self._write_checkpoint(folder, step)
            workers.publish(folder, step)
            checkpoint.point(folder, step)
        except Exception as error:
            text = checkpoint.not_written(folder, step, error)  # first, while the disk is still as full as it was
            workers.discard(folder)
            report(compose(text, f"saving after step {step}", error_text(error), OTHER))
            raise RuntimeError(text) from error
        self.saved_step = step
        keep = 1 if trainer.get("remove_previous_ckpt_in_save", False) else trainer.max_actor_ckpt_to_keep
        workers.prune(folder, keep)
        self.checkpoint_callback.on_save(
            trainer=self, global_step=step, checkpoint_dir=str(checkpoint.step_folder(folder, step)), async_save=False
        )

    def _write_checkpoint(self, folder: str, step: int):
        """verl's files and their manifest, in the partial folder. verl's callback is told later, when they are in place."""
        trainer = self.config.trainer
        told = self.checkpoint_callback
        trainer.default_local_dir, self.checkpoint_callback = f"{folder}/{checkpoint.PARTIAL}", CheckpointCallback()
        try:
            super()._save_checkpoint()
            manifest.seal(checkpoint.step_folder(trainer.default_local_dir, step), step)
        finally:
            trainer.default_local_dir, self.checkpoint_callback = folder, told

    # ----------------------------------------------------------------------------------------------- stages of the run

    def on_init_end(self):
        with self.watchdog.guard("first weight sync"):
            super().on_init_end()
        phase_done(ENGINE)

    def fit(self, agent_loop_manager):
        with self.watchdog.guard("start of training"):
            super().fit(agent_loop_manager)
        self.watchdog.stop()
        loggers.log_summary(self.logger.logger, measure(self.config))
        phase_done(END)

    def on_validate_begin(self):
        self.watchdog.stage = f"validation after step {self.global_steps}"
        self._open_metrics()
        super().on_validate_begin()

    def on_validate_end(self):
        super().on_validate_end()
        if self.global_steps == self.resumed_step:
            phase_done("held-out accuracy")

    def on_train_begin(self):
        self._open_metrics()
        super().on_train_begin()

    def on_sample_begin(self):
        self.watchdog.stage = f"rollouts of step {self.global_steps}"
        super().on_sample_begin()

    def on_sample_end(self):
        # verl counts the rollouts that a dead engine lost as finished and would train on the others
        self.watchdog.check()
        if self.refills is not None:
            self.refills.lost = 0  # a batch came to its end
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

    # ----------------------------------------------------------------------------------------------------------- logs

    def _open_metrics(self):
        """Add our JSON lines to verl's loggers. Its own file logger truncates the file of the run that is resumed."""
        if "jsonl" not in self.logger.logger:
            lines = self.logger.logger["jsonl"] = JsonLines(f"{self.config.run.dir}/metrics.jsonl", self.resumed_step)
            self.step_log.resume(lines.kept)
            if lines.lacks:
                say(f"WARNING step {lines.lacks} has a checkpoint and no metrics: the run ended between the two")
            self.logger.logger["curve"] = Curve(self.config)  # behind the file that it draws

    @contextmanager
    def healthy(self):
        """A step whose numbers end the run: its cause goes to the screen, with the last checkpoint."""
        try:
            yield
        except Unhealthy as error:
            newest = checkpoint.newest_whole(self.config.trainer.default_local_dir)
            report(compose("its numbers are broken", f"step {self.global_steps}", str(error), advice(newest)))
            raise

    def _flush_logs(self):
        if (logger := getattr(self, "logger", None)) is not None:
            logger.finish(exit_code=1)

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        # of verl's own numbers only those of the turns: best@k and maj@k of the evaluation take the place of its resampling
        turns = super()._val_metrics_update([], [], {}, sample_turns)
        given = data_sources, sample_uids, reward_extra_infos_dict, expected_acc_counts or {}
        return turns | validation_metrics(*given, self.srpo.correct_threshold, self.srpo.seed)

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        for key in dropped(metrics):
            del metrics[key]
        sync_gap.check(metrics, self.srpo.sync_gap, global_steps)
        self.step_log.write(global_steps, self.total_training_steps, metrics, timing_raw)
