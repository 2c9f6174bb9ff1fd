"""verl's agent-loop manager over workers that roll out a group at a time."""

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from srpo_recipe.training.group_rollout import GroupWorker


class GroupManager(AgentLoopManagerTQ):
    """verl's manager over `GroupWorker`s: actor_rollout_ref.rollout.agent.agent_loop_manager_class."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(GroupWorker)
