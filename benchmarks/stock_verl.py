"""verl's own GRPO, on the configuration that SRPO is run with: its trainer, estimator and loss as released.

    python benchmarks/stock_verl.py [Hydra overrides]

Ours are the configuration (`config/`), the agent loop's record of the chat and, on a machine without an
accelerator, the platform (`srpo_recipe/cpu`).
"""

import hydra
from omegaconf import DictConfig

import srpo_recipe.settings.schema  # noqa: F401  (registers the schema of the section srpo)
from srpo_recipe.run.prepare import prepare

# What the recipe sets and stock verl has otherwise. The agent loop is verl's with the recipe's record of the chat: rollouts
# are made once and replayed by all, and the self-teacher needs that record.
STOCK = [
    "trainer.v1.trainer_mode=sync",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla",
    "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
]


@hydra.main(config_path="pkg://srpo_recipe_config", config_name="srpo", version_base=None)
def main(config: DictConfig) -> None:
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.utils.device import auto_set_device

    prepare(config)
    auto_set_device(config)
    run_ppo(config, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    main()
