"""A reward function in verl's signature whose verdicts the data says, for runs that make their rollouts."""

import itertools
import os
import time
from pathlib import Path


def verdict(data_source, solution_str, ground_truth, extra_info=None, *, folder: str) -> float:
    """0.0 for the first `ground_truth` rollouts of a prompt that come, 1.0 for the others.

    folder: every call leaves FOLDER/PROMPT/NUMBER there, with the times of its start and its end; several processes verify the
    rollouts of a prompt, and by that file they count them.
    """
    started = time.time()
    prompt = Path(folder) / str(extra_info["index"])
    prompt.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        try:
            handle = os.open(prompt / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            continue
        with os.fdopen(handle, "w") as file:
            file.write(f"{started} {time.time()}")
        return float(number >= int(ground_truth))
    raise AssertionError("numbers do not end")


def times(folder: Path, prompts: range, rollouts: int) -> tuple[float, float]:
    """When the first verdict of these prompts began and the last one ended, in seconds since the epoch.

    Raises RuntimeError where a prompt has not had `rollouts` verdicts.
    """
    found = []
    for prompt in prompts:
        files = list((folder / str(prompt)).glob("*"))
        if len(files) != rollouts:
            raise RuntimeError(
                f"{folder}/{prompt}: {len(files)} verdicts for {rollouts} rollouts: see the run's log beside it"
            )
        found += [tuple(map(float, file.read_text().split())) for file in files]
    return min(start for start, _ in found), max(end for _, end in found)
