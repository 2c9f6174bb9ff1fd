"""From the driver into verl: its own runner, with our trainer's process in the place of its own.

The order is that of verl.trainer.main_ppo.main. Importing this module takes seconds, so the driver does it last.
"""

from collections.abc import Callable

from omegaconf import DictConfig
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from srpo_recipe.training.runner import SRPOTaskRunner


class Runner:
    """SRPOTaskRunner as verl makes it (main_ppo.py:90, 92): the first moment in the driver at which Ray runs.

    begun: called then.
    """

    def __init__(self, begun: Callable[[], None]):
        self.begun = begun

    def options(self, **options):
        """Ray's: the same with options, which verl gives for a profile."""
        self.begun()
        return SRPOTaskRunner.options(**options)

    def remote(self):
        """Ray's: start the process."""
        self.begun()
        return SRPOTaskRunner.remote()


def launch(config: DictConfig, begun: Callable[[], None] = lambda: None) -> None:
    """Run the training to its end. config: checked and prepared. begun: called in this thread when Ray runs.

    Raises what verl refuses, or what the trainer raised.
    """
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, task_runner_class=Runner(begun))
