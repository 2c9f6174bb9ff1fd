"""What only the driver knows is filled into a run's config: paths, the run's folder and clock, embedded data."""

import os
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe.run import stop
from srpo_recipe.settings.wire import wire

PACKAGE = Path(__file__).parents[1]


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
