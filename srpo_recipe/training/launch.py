"""From the driver into verl: its own runner, with our trainer's process in the place of its own.

The order is that of verl.trainer.main_ppo.main. Importing this module takes seconds, so the driver does it last.
"""

from omegaconf import DictConfig
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from srpo_recipe.training.runner import SRPOTaskRunner


def launch(config: DictConfig) -> None:
    """Run the training to its end. config: checked and prepared. Raises what verl refuses, or what the trainer
    raised."""
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, task_runner_class=SRPOTaskRunner)
