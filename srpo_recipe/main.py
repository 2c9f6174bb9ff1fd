"""The entry point: `python -m srpo_recipe.main [Hydra overrides]`, or the console script `srpo-train`."""

import json
import sys
from threading import Event

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from srpo_recipe.machine import on_cpu
from srpo_recipe.records import owners
from srpo_recipe.records.tables import print_table
from srpo_recipe.run import cluster, folder, guard, queue_key, screen, stop
from srpo_recipe.run.prepare import check_files, prepare
from srpo_recipe.run.summary import summarise
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.overrides import explain
from srpo_recipe.settings.rules import check

BEGUN = Event()


def main() -> None:
    """Run, in a process of its own that nothing of it outlives (run/guard.py)."""
    guard.guarded(command)


def command() -> None:
    """Compose the config and run. Where Hydra ends the command for an argument, what is wrong with it and the fix follow."""
    try:
        on_cpu()
    except ValueError as error:
        sys.exit(f"Configuration error: {error}")
    cluster.keep_to_this_machine()
    owners.keep_what_is_written()
    try:
        composed()
    except SystemExit as ended:
        if ended.code == 1 and not BEGUN.is_set():  # Hydra's own end, before a config was there
            fault = explain(get_args_parser().parse_args().overrides)
            sys.exit(f"Configuration error: {fault}" if fault else 1)
        raise


@hydra.main(config_path="pkg://srpo_recipe_config", config_name="srpo", version_base=None)
def composed(config: DictConfig) -> None:
    """What is done with a config that Hydra has composed."""
    from srpo_recipe import plugin  # imports ray: not before `keep_to_this_machine`

    BEGUN.set()
    plugin.assert_discovered()
    try:
        settings = check(config)
        check_files(config)
    except ValueError as error:
        sys.exit(f"Configuration error: {error}")
    print_table(describe(config, settings))
    try:
        prepare(config)
    except ValueError as error:
        sys.exit(f"Data error: {error}")
    except folder.Refused as error:
        sys.exit(f"Not started: {error}")
    try:
        with folder.taken(config) as start:
            run(config, start)
    except folder.Refused as error:
        sys.exit(f"Not started: {error}")


def run(config: DictConfig, start: folder.Start) -> None:
    """Train in a folder that is ours, and print the summary. Exits with a status of its own where the run was stopped."""
    finished = f"Already finished: step {start.step} is the last one of this run, 0 steps were done. More of the same: a larger "
    finished += "trainer.total_training_steps; anew: run.fresh=true"
    if start.finished:
        print(finished)
        print(json.dumps(summarise(config)), flush=True)
        return
    if start.step:
        print(f"going on from the checkpoint of step {start.step} (start {start.number} of this run)", flush=True)
    try:
        cluster.join(config)
    except TimeoutError as error:
        sys.exit(f"Cluster error: {error}")
    print(f"logs of all processes: {config.run.dir}/{screen.FOLDER}", flush=True)
    guard.tell(config.run.dir, config.trainer.default_local_dir)
    with screen.of_run(config.run.dir, config.run.console, config.run.started_at) as shown, queue_key.made(config):
        from srpo_recipe.training.watch.driver import ended_clearly  # ray

        with ended_clearly(config, shown) as begun:
            from srpo_recipe.training.launch import launch  # verl, which takes seconds

            shown.phase("environment")
            launch(config, begun)
    if (step := stop.confirmed(config)) is not None:
        asked = begun.ending.signal.name if begun.ending.signal is not None else stop.who(config)
        print(f"stopped after step {step}, as {asked} asked; the same command goes on from there")
        sys.exit(stop.STATUS)
    summary = summarise(config)
    if summary["steps"] == start.step and not config.trainer.val_only:
        print(finished)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
