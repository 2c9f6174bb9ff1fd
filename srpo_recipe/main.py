"""The entry point: `python -m srpo_recipe.main [Hydra overrides]`, or the console script `srpo-train`."""

import json
import os
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe import plugin, stop
from srpo_recipe.config import check, describe
from srpo_recipe.verify.settings import wire
from srpo_recipe.watchdog import ended_clearly

PACKAGE = Path(__file__).parent


def print_table(rows: list[tuple[str, str]]) -> None:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows), flush=True)


def prepare(config: DictConfig) -> None:
    """Fill in what only this process knows: paths inside the package, the run's folder and clock, embedded data."""
    with open_dict(config):
        # Absolute first: other processes, perhaps on other nodes, read the paths that are built from these.
        config.run.root = str(Path(config.run.root).absolute())
        config.run.dir = str(Path(config.run.dir).absolute())
        config.run.stop_file = str(Path(config.run.stop_file).absolute())
        if os.environ.get("RAY_ADDRESS"):  # a cluster that runs has its resources
            config.ray_kwargs.ray_init.update(num_cpus=None, num_gpus=None)
        OmegaConf.resolve(config)
        config.run.started_at = config.run.started_at or time.time()
        wire(config)
        config.actor_rollout_ref.srpo = config.srpo
        agent = config.actor_rollout_ref.rollout.agent
        agent.agent_loop_config_path = agent.agent_loop_config_path or str(PACKAGE / "agent_loops.yaml")
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    stop.clear(config)
    if config.task.get("generate"):
        hydra.utils.instantiate(config.task.generate)
    OmegaConf.save(config, run_dir / "config.yaml")


def join_cluster(config: DictConfig) -> None:
    """Wait for the run's nodes, where RAY_ADDRESS names a cluster. Exits with what is missing."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    from srpo_recipe import cluster

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

    from srpo_recipe.runner import SRPOTaskRunner

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

    from srpo_recipe.report import summarise

    ray.shutdown()  # its workers' last lines come before ours
    if (step := stop.confirmed(config)) is not None:
        print(f"stopped after step {step}, as {config.run.stop_file} asked; the same command goes on from there")
        sys.exit(stop.STATUS)
    print(json.dumps(summarise(config)), flush=True)


if __name__ == "__main__":
    main()
