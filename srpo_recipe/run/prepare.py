"""What only the driver knows is filled into a run's config: paths, the run's folder and clock, embedded data."""

import os
import tempfile
from pathlib import Path

import hydra
import psutil
from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe.data import usable
from srpo_recipe.run import folder, guard
from srpo_recipe.settings import agents, local_model
from srpo_recipe.settings.places import PATHS
from srpo_recipe.settings.wire import wire


def check_files(config: DictConfig) -> None:
    """Look at the files that the config names beside the data: the model's config.json, agent loops, tools.

    Raises ValueError, with key and fix, where they do not hold what the run would take from them.
    """
    local_model.check(config)
    agents.check(config)


def prepare(config: DictConfig) -> None:
    """Fill the config in, write embedded data, and look at the rows.

    Writes nothing into the run's folder: whether this run may have it is asked later (folder.py). Raises ValueError for rows
    that verl's loader would take and that cannot be trained on, folder.Refused where run.root cannot be written to.
    """
    fill(config)
    _check_root(config.run.root)
    if config.task.get("generate"):
        hydra.utils.instantiate(config.task.generate)
    _check_rows(config)


def _check_root(root: str) -> None:
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise folder.Refused(
            f"nothing can be written to run.root={root} ({error.strerror}): set run.root to another folder"
        ) from error


def fill(config: DictConfig) -> None:
    """Fill in what only this process knows: paths inside the package, the run's folder and clock. Writes nothing."""
    with open_dict(config):
        # Absolute first: other processes, perhaps on other nodes, read the paths that are built from these.
        for key in PATHS:
            OmegaConf.update(config, key, str(Path(OmegaConf.select(config, key)).expanduser().absolute()))
        if os.environ.get("RAY_ADDRESS"):  # a cluster that runs has its resources
            config.ray_kwargs.ray_init.update(num_cpus=None, num_gpus=None)
        else:  # a cluster of its own, whoever else runs one on this machine
            config.ray_kwargs.ray_init.address = "local"
        OmegaConf.resolve(config)
        config.run.started_at = config.run.started_at or psutil.Process(guard.first()).create_time()
        wire(config)
        _room_for_a_prompt(config)
        config.actor_rollout_ref.srpo = config.srpo
        agent = config.actor_rollout_ref.rollout.agent
        agent.agent_loop_config_path = agent.agent_loop_config_path or str(agents.SHIPPED)


def _check_rows(config: DictConfig) -> None:
    """Before anything starts: every row that verl's own loader will read can be used."""
    data = config.data
    if data.custom_cls.path is not None:
        return  # a loader of the user's: its files are its own, and so is the index that it gives
    for key in usable.FILES:
        for file in usable.files(data, key):
            if "://" in file:
                print(f"data.{key}: {file} is not on this machine, so its rows are not looked at", flush=True)
    usable.check(config)


def _room_for_a_prompt(config: DictConfig) -> None:
    """Without chunked prefill vLLM takes a prompt whole, so a batch has room for the longest sequence. verl would raise the
    number itself, in a dataclass that is frozen (vllm_async_server.py:1119).
    """
    rollout = config.actor_rollout_ref.rollout
    if not rollout.enable_chunked_prefill:
        rollout.max_model_len = rollout.max_model_len or config.data.max_prompt_length + config.data.max_response_length
        rollout.max_num_batched_tokens = max(rollout.max_num_batched_tokens, rollout.max_model_len)
