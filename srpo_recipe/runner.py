"""verl's task runner, with the method registered in the process that looks it up."""

import os

import ray
from verl.trainer.main_ppo import TaskRunnerV1


# On the head, where the driver is: Ray would place it anywhere, and any node's death could take the one process that can
# tell the cause. Ray gives every head this resource.
@ray.remote(num_cpus=1, resources={"node:__internal_head__": 0.001})
class SRPOTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer."""

    def run(self, config):
        from srpo_recipe.plugin import register_method

        register_method()
        # read by verl's logger in this process, which on a cluster does not see the driver's variables
        os.environ.setdefault("TENSORBOARD_DIR", f"{config.run.dir}/tensorboard")
        super().run(config)
