"""The entry point: `python -m srpo_recipe.main [Hydra overrides]`, or the console script `srpo-train`."""

import json
import os
import sys

import hydra
from omegaconf import DictConfig

from srpo_recipe import plugin
from srpo_recipe.records.tables import print_table
from srpo_recipe.run import stop
from srpo_recipe.run.prepare import prepare
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check
from srpo_recipe.training.watch.driver import ended_clearly


def join_cluster(config: DictConfig) -> None:
    """Wait for the run's nodes, where RAY_ADDRESS names a cluster. Exits with what is missing."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    from srpo_recipe.run import cluster

    trainer, expected = config.trainer, os.environ.get("SRPO_NODES", "").split()
    address = os.environ["RAY_ADDRESS"]
    try:
        cluster.wait(address, trainer.nnodes, trainer.n_gpus_per_node, config.run.wait_seconds, expected)
    except TimeoutError as error:
        sys.exit(f"Cluster error: {error}")


def run(config: DictConfig) -> None:
    """verl's own runner, in the order of verl.trainer.main_ppo.main, with our trainer registered where it is looked up."""
    from verl.trainer.main_ppo import run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    from srpo_recipe.training.runner import SRPOTaskRunner

    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, task_runner_class=SRPOTaskRunner)


@hydra.main(config_path="pkg://srpo_recipe_config", config_name="srpo", version_base=None)
def main(config: DictConfig) -> None:
    plugin.assert_discovered()
    try:
        settings = check(config)
    except ValueError as error:
        sys.exit(f"Configuration error: {error}")
    print_table(describe(config, settings))
    prepare(config)
    join_cluster(config)
    with ended_clearly(config.run.dir):
        run(config)
    import ray

    from srpo_recipe.run.summary import summarise

    ray.shutdown()  # its workers' last lines come before ours
    if (step := stop.confirmed(config)) is not None:
        print(f"stopped after step {step}, as {config.run.stop_file} asked; the same command goes on from there")
        sys.exit(stop.STATUS)
    print(json.dumps(summarise(config)), flush=True)


if __name__ == "__main__":
    main()
