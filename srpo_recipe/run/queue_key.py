"""The key of a run's data queue: made for each start, in a folder of the run that nobody else can open, gone with the run.

The run's processes learn from Ray where it lies and fetch it before anything else (training/queue_keys.py).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq
from omegaconf import DictConfig, open_dict

VARIABLE = "SRPO_QUEUE_KEY"  # the key's file; the key itself is in no variable, config or log
HOOK = "srpo_recipe.training.queue_keys.install"
FOLDER, NAME = "private", "queue.key"


@contextmanager
def made(config: DictConfig) -> Iterator[None]:
    """Have a key until the block ends, and its place in what Ray tells the run's processes.

    config: of a run whose folder is ours; its ray_kwargs are filled in.
    """
    folder = Path(config.run.dir) / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    path = folder / NAME
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, zmq.curve_keypair()[1])
    finally:
        os.close(handle)
    with open_dict(config):
        environment = config.ray_kwargs.ray_init.runtime_env
        environment.env_vars = {**(environment.get("env_vars") or {}), VARIABLE: str(path)}
        environment.worker_process_setup_hook = HOOK
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
