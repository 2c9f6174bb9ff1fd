"""verl's agent-loop manager over workers that roll out a group at a time."""

import asyncio
from typing import ClassVar
from uuid import uuid4

import ray
from omegaconf import DictConfig
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from srpo_recipe.training.group_rollout import GroupWorker


class _Running:
    """Stands where verl makes its workers (`agent_loop_workers_class.options(...).remote(...)`) and hands out some that run."""

    def __init__(self, workers: list):
        self.workers = workers
        self.begun: list = []

    def options(self, **_) -> "_Running":
        return self

    def remote(self, *args):
        worker = self.workers.pop(0)
        self.begun.append(worker.begin.remote(*args))
        return worker


class GroupManager(AgentLoopManagerTQ):
    """verl's manager over `GroupWorker`s: actor_rollout_ref.rollout.agent.agent_loop_manager_class."""

    early: ClassVar[list] = []  # workers whose processes run already

    @classmethod
    def start_early(cls, config: DictConfig) -> None:
        """Start the workers' processes while verl is busy with others. On one machine, where all places are alike."""
        rollout = config.actor_rollout_ref.rollout
        if config.trainer.nnodes == 1:
            cls.early = [
                ray.remote(GroupWorker).options(name=f"agent_loop_worker_{number}_{uuid4().hex[:8]}").remote()
                for number in range(rollout.agent.num_workers)
            ]
            for worker in cls.early:
                worker.import_engine.remote(rollout.name)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = _Running(self.early) if self.early else ray.remote(GroupWorker)

    async def _init_agent_loop_workers(self):
        await super()._init_agent_loop_workers()
        await asyncio.gather(*getattr(self.agent_loop_workers_class, "begun", ()))  # raises what a worker raised
