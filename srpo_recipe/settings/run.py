"""The settings of a run's folder: every default once, every wrong value refused with its fix."""

import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import is_number
from srpo_recipe.verify.settings import require

CAUSES = ("reward", "loss", "gradient", "skipped")  # health.py has what they mean
AUTO, ANYWAY = "auto", "anyway"
CONSOLES = ("lines", "all")

# A default name carries what was overridden in these. The seed stands in the name already.
NAMED = re.compile(
    r"(srpo|method|algorithm)\..+|actor_rollout_ref\.actor\.(optim\..+|clip_ratio.*|ppo_epochs|ppo_mini_batch_size)"
    r"|actor_rollout_ref\.rollout\.(n|temperature|top_k|top_p)|data\.train_batch_size"
)
NOT_NAMED = tuple(
    f"srpo.{key}"
    for key in "seed logits_rows chunk_megabytes poll_seconds stall_seconds collapse_ratio sync_gap".split()
)
LONGEST_VALUE, LONGEST_SUFFIX = 24, 120


@dataclass
class RunConfig:
    """Where a run lives, and how it is started again. Everything that it writes is under `dir`."""

    # A second run of the same name goes on from the checkpoint of the first. Default names carry what the command line sets
    # in the method.
    name: Any = "${method.name}-${task.name}-seed${srpo.seed}${run.overridden}"
    root: Any = "outputs"
    dir: str = "${run.root}/${run.name}"
    # Part of the default name; filled in from the command line.
    overridden: str = "${srpo_overridden:}"
    # auto goes on from the newest checkpoint of a folder with the same settings; anyway does so with other settings, too; a
    # number is the step of the checkpoint to go on from.
    resume: Any = AUTO
    # Move the folder of an earlier run of this name to run.root/old, and start at step 0.
    fresh: bool = False
    # Seconds since the epoch at which the command was given; 0 means when the process started.
    started_at: float = 0
    # Make this file, and the run writes a checkpoint after its current step and ends with status 75.
    stop_file: str = "${run.dir}/STOP"
    # What a run may take, after SIGTERM, SIGHUP or SIGINT, to end its step and write a checkpoint; then it ends without. 0: it
    # ends at once.
    grace_seconds: float = 20
    # How long a run waits for its nodes to join the cluster that RAY_ADDRESS names.
    wait_seconds: float = 600
    # Groups of rollouts that each training step writes into run.dir/samples, token by token, and questions that each
    # validation does; `python -m srpo_recipe.inspect` shows them. 0 for none.
    samples: int = 2
    # What ends a run at once, with the step, the rows and the last checkpoint: reward (one that is no finite number, or a step
    # without one verification that came to an end), loss and gradient (not finite), skipped (most_skipped steps in a row with
    # an optimiser step skipped, for a gradient that is not finite). [] for nothing.
    stop_on: Any = field(default_factory=lambda: list(CAUSES))
    most_skipped: int = 3
    # What the screen shows of a run: lines (the method's own; the libraries' go to run.dir/logs) or all.
    console: str = "lines"


ConfigStore.instance().store(group="run", name="schema", node=RunConfig)


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for a way to resume that is none or that contradicts another setting."""
    resume, mode = config.run.resume, config.trainer.resume_mode
    step = isinstance(resume, int) and not isinstance(resume, bool)
    require(
        resume in (AUTO, ANYWAY) or (step and resume > 0),
        f"run.resume={resume}: set it to auto, to anyway (go on although settings differ), or to a checkpoint's step",
    )
    unknown = [cause for cause in causes(config) if cause not in CAUSES]
    require(
        not unknown,
        f"run.stop_on has {', '.join(map(str, unknown))}: set it to a list of {', '.join(CAUSES)}, or to [] for none",
    )
    most = config.run.most_skipped
    require(
        most >= 1,
        f"run.most_skipped={most}: set it to a whole number of at least 1, or leave skipped out of run.stop_on",
    )
    grace = config.run.grace_seconds
    require(
        is_number(grace) and 0 <= grace < math.inf,
        f"run.grace_seconds={grace} must be a number of seconds, 0 or more: how long a run that is told to end may take for a "
        "checkpoint",
    )
    require(config.run.console in CONSOLES, f"run.console={config.run.console}: set it to {' or '.join(CONSOLES)}")
    require(
        not (config.run.fresh and resume != AUTO),
        f"run.fresh=true starts at step 0 and run.resume={resume} goes on: leave one of them out",
    )
    require(
        not step or mode == "auto",
        f"run.resume={resume} chooses the checkpoint, and so does trainer.resume_mode={mode}: leave trainer.resume_mode at "
        "auto",
    )
    path, own = str(config.trainer.resume_from_path), os.path.abspath(config.trainer.default_local_dir)
    require(
        mode != "resume_path" or os.path.dirname(os.path.abspath(path)) != own,
        f"trainer.resume_from_path={path} is a checkpoint of this run: leave trainer.resume_mode at auto, and set "
        f"run.resume={os.path.abspath(path).rpartition('_')[2]}",
    )


def causes(config: DictConfig) -> list[Any]:
    """What ends the run at once."""
    given = config.run.stop_on
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return list(given or []) if several or given is None else [given]


def overridden(overrides: Sequence[str]) -> str:
    """What a default name ends with: `-beta3` for srpo.beta=3, for each override of the method; empty without any."""
    parts = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if equals and NAMED.fullmatch(key) and key not in NOT_NAMED:
            parts.append(f"-{key.rpartition('.')[2]}{_short(value, LONGEST_VALUE)}")
    return _short("".join(parts), LONGEST_SUFFIX)


def _short(text: str, longest: int) -> str:
    """Text for a file name; what had to change in it, or was too long, is told apart by a checksum."""
    clean = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
    if clean == text and len(text) <= longest:
        return text
    return f"{clean[: longest - 9]}_{zlib.crc32(text.encode()):08x}"


def _typed() -> str:
    """Of the command line that Hydra took; elsewhere `compose_config` sets run.overridden."""
    return overridden(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ""


OmegaConf.register_new_resolver("srpo_overridden", _typed, replace=True)
