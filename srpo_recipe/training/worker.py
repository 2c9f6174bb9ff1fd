"""verl's actor, rollout and reference worker with the reference model turned into the self-teacher.

A step calls `compute_teacher` (the rows on the distillation route under the teacher's prompt; what the update needs of it stays
on the rank) and then `update_actor` (the optimiser steps, each followed by the EMA).
"""

from dataclasses import replace
from functools import partial

from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from srpo_recipe.records import checkpoint
from srpo_recipe.run.say import phase_done
from srpo_recipe.settings.options import needs_reference
from srpo_recipe.settings.read import from_plain
from srpo_recipe.training import adapters, engine
from srpo_recipe.training.fields import OPTIMIZER_STEPS, TEACHER_ROW
from srpo_recipe.training.loss_metrics import over_steps
from srpo_recipe.training.losses import update_loss
from srpo_recipe.training.network import confine
from srpo_recipe.training.passes import PASS
from srpo_recipe.training.seen import Seen, SeenTokens
from srpo_recipe.training.watch.sync_watch import SyncWatch


class RoutedTrainingWorker(TrainingWorker):
    """verl's training worker on RoutedEngine."""

    model_type = engine.MODEL_TYPE

    def __init__(self, config):
        super().__init__(replace(config, model_type=self.model_type))


class AdapterTrainingWorker(RoutedTrainingWorker):
    """verl's training worker on AdapterEngine."""

    model_type = adapters.MODEL_TYPE


class SRPOWorker(ActorRolloutRefWorker):
    """verl's worker with the method's engine, loss and self-teacher."""

    actor_worker_cls = RoutedTrainingWorker
    ref_worker_cls = RoutedTrainingWorker

    def __init__(self, config: DictConfig, role: str, **kwargs):
        confine()
        self.srpo = from_plain(config.srpo)
        super().__init__(config, role, **kwargs)
        # the self-teacher is a model of its own, verl's reference, or with LoRA an adapter of the actor
        self.teacher: RoutedTrainingWorker | None = None
        self.is_lora = config.model.lora_rank > 0
        if self.is_lora and self.srpo.needs_teacher:
            self.actor_worker_cls = AdapterTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        super().init_model()
        self.actor.engine.srpo = self.srpo
        if self.srpo.needs_teacher:
            self.teacher = self.actor if self.is_lora else self.ref
            self.teacher.engine.srpo = self.srpo
            self.actor.engine.teacher = self.teacher.engine
            if self.is_lora:  # verl did it for a model of its own
                self.set_dispatch_collect(mesh_name="ref", **self.teacher.get_dispatch_collect())
        actor_config = self.loss_fn.keywords["config"]  # verl has built it into its own loss
        self.actor.engine.actor_config = actor_config
        self.seen = SeenTokens(self.teacher and self.teacher.engine.states)
        self.loss_fn: partial = partial(update_loss, actor_config, self.srpo, seen=self.seen)
        self.actor.set_loss_fn(self.loss_fn)
        self.sync_watch = SyncWatch(self.rollout, self.srpo.stall_seconds)
        if self.rank == 0:
            phase_done("actor and teacher" if self.teacher else "actor")

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def positions(self) -> int | None:
        """How many tokens the model has positions for; None where its config does not say."""
        config = self.actor.model_config.hf_config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="ref"))
    def compute_teacher(self, data: TensorDict) -> TensorDict:
        """Score the routed rows' responses under the teacher's prompt. Returns the numbers of the rows, [B]: the states that
        were made stay in the engine until the update has used them.
        """
        assert self.teacher is not None
        self.teacher.engine.forget_teacher()
        for stage in ("teacher", "first") if needs_reference(self.srpo) else ("teacher",):
            self._score(data, stage)
        self.teacher.engine.finish_teacher_pass()
        return data.select(TEACHER_ROW).cpu()

    def _score(self, data: TensorDict, stage: str) -> None:
        """A forward pass of the teacher's, or of the first model. Its limits are those that the trainer has written into `data`,
        also where an adapter's pass is the actor's worker's, which has others of its own.
        """
        assert self.teacher is not None
        tu.assign_non_tensor(data, compute_loss=False, **{PASS: stage})
        self.teacher.infer_batch(data=data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """The optimiser steps of one batch; the teacher's distance is measured once after them."""
        engine = self.actor.engine
        tu.pop(data, key="mini_batch_size", default=None)  # in rows, where a rollout may have several
        tu.assign_non_tensor(data, num_mini_batch=tu.pop(data, key=OPTIMIZER_STEPS), **{PASS: "update"})
        output = super().update_actor(data)
        found = {"optimizer/skipped_steps": [engine.skipped_steps]}
        engine.skipped_steps = 0
        if self.teacher is not None:
            self.teacher.engine.forget_teacher()
            found["ema_distance"] = [engine.relative_teacher_distance()]
        if output is not None:
            metrics = tu.get(output, "metrics")
            together = over_steps(metrics) | found
            metrics.clear()
            metrics.update(together)
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def seen_tokens(self) -> dict[int, Seen]:
        """The tokens of this rank's rows that the trainer wanted to see, by its numbers; asked once after an update."""
        return self.seen.take()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """The actor as verl saves it, and the teacher beside it. Nothing old goes before everything new is there: see `prune`."""
        super().save_checkpoint(local_path, hdfs_path, global_step, None)
        if self.teacher is not None:
            self.teacher.engine.save_teacher(checkpoint.teacher_path(local_path), global_step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def discard(self, folder: str, step: int | None = None):
        """Remove what a save left that was cut, on every machine."""
        checkpoint.discard(folder, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def publish(self, folder: str, step: int):
        """Give the checkpoint that was just written its place, on every machine: those that do not share the driver's folder have
        parts of their own.
        """
        checkpoint.publish(folder, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prune(self, folder: str, keep: int | None):
        """Remove the oldest checkpoints but `keep`, once the newest is whole. A machine that does not share the driver's folder
        keeps its part of all: it cannot tell which are whole.
        """
        checkpoint.prune(folder, keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """Refuses a checkpoint without the teacher: starting one afresh would silently change the method."""
        if self.teacher is not None:
            checkpoint.require_teacher(local_path, self.world_size, self.rank)
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if self.teacher is not None:
            self.teacher.engine.load_teacher(checkpoint.teacher_path(local_path))
