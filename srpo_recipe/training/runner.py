"""verl's task runner, with the method registered in the process that looks it up."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1
from verl.workers.rollout.replica import get_rollout_replica_class

logger = logging.getLogger(__name__)

GROUP_MANAGER = "srpo_recipe.training.group_manager.GroupManager"  # as config/srpo.yaml names it


# On the head, where the driver is: Ray would place it anywhere, and any node's death could take the one process that can
# tell the cause. Ray gives every head this resource, but not every head has processors to give: KubeRay's have none.
@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
class SRPOTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer.

    verl starts its processes one after the other and waits for each. These waits are used: the data queue's processes start
    while this one imports the trainer (verl's own `tq.init` then finds them); the agent loop's process starts, and the rollout
    engine is imported, of which verl wants the class when the training workers stand, while those start.
    """

    def run(self, config: DictConfig):
        from srpo_recipe.training.register import register_method

        # read by verl's logger and by W&B in this process, which on a cluster does not see the driver's variables
        os.environ.setdefault("TENSORBOARD_DIR", f"{config.run.dir}/tensorboard")
        os.environ.setdefault("WANDB_DIR", config.run.dir)  # its folder there is called wandb
        with ThreadPoolExecutor(1) as pool:
            queue = pool.submit(tq.init, config.transfer_queue)
            register_method()
            queue.result()
        if config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == GROUP_MANAGER:
            from srpo_recipe.training.group_manager import GroupManager

            GroupManager.start_early(config)
        threading.Thread(target=_import_engine, args=[config.actor_rollout_ref.rollout.name], daemon=True).start()
        super().run(config)


def _import_engine(name: str) -> None:
    try:
        get_rollout_replica_class(name)
    except Exception:  # verl asks again, and reports it
        logger.debug("the rollout engine %s cannot be imported ahead of time", name, exc_info=True)
