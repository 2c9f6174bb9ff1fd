"""verl's task runner, with the method registered in the process that looks it up."""

import os

import ray
from verl.trainer.main_ppo import TaskRunnerV1


@ray.remote
class SRPOTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """The process that holds the trainer."""

    def run(self, config):
        from srpo_recipe.plugin import register_method

        register_method()
        # read by verl's logger in this process, which on a cluster does not see the driver's variables
        os.environ.setdefault("TENSORBOARD_DIR", f"{config.run.dir}/tensorboard")
        super().run(config)
