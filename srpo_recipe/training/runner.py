"""verl's task runner, with the method registered in the process that looks it up."""

import os

import ray
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from srpo_recipe.run.say import phase_done


# On the head, where the driver is: Ray would place it anywhere, and any node's death could take the one process that can
# tell the cause. Ray gives every head this resource, but not every head has processors to give: KubeRay's have none.
@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
class SRPOTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer."""

    def run(self, config: DictConfig):
        from srpo_recipe.training.register import register_method

        # read by verl's logger and by W&B in this process, which on a cluster does not see the driver's variables
        os.environ.setdefault("TENSORBOARD_DIR", f"{config.run.dir}/tensorboard")
        os.environ.setdefault("WANDB_DIR", config.run.dir)  # its folder there is called wandb
        phase_done("cluster")
        register_method()
        super().run(config)
