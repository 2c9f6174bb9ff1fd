"""Writes what scripts/image.sh measured, from its logs, as a file of results, and prints it.

python docker/results.py WORK OUT.json        # WORK: the folder with base.log, image.log, ...
"""

import itertools
import json
import re
import sys
from pathlib import Path

from srpo_recipe.records.results import write_results

COLUMNS = ["part", "what", "seconds", "result"]
WHAT = {
    "base": "a clean Debian by debootstrap, in the place of the pinned image",
    "image": "`srpo-cpu`, the whole of `docker/Dockerfile.cpu`",
    "smoke": "its stage `smoke`: two steps of the quickstart during the build, 64 MB of `/dev/shm`",
    "run": "two steps of the quickstart in a container, 2 GB of `/dev/shm`",
    "stranger": "one step as user 12345 with `HOME=/tmp` and a mounted `outputs` of that user",
    "cluster": "`docker/compose.yaml`, two hosts, and ten steps of a job over both",
    "gpu": "`docker/Dockerfile.gpu` as far as its first `RUN`, on the clean Debian",
}
LINE = re.compile(r" *(\d+) s  (.*)")
STEP = re.compile(r"(?:\[\d+/\d+\] )?(?:STEP \d+/\d+: (?P<instruction>.*)|COMMIT .*)")


def read(log: Path) -> list[tuple[int, str]]:
    """(seconds since the part began, text) of every line."""
    return [(int(match[1]), match[2]) for line in log.read_text().splitlines() if (match := LINE.fullmatch(line))]


def steps(lines: list[tuple[int, str]]) -> list[tuple[str, int | None]]:
    """(instruction, seconds; None where a layer of an earlier call was used) of every step of a build."""
    heads = [(at, match["instruction"]) for at, (_, text) in enumerate(lines) if (match := STEP.fullmatch(text))]
    found = []
    for (start, instruction), (end, _) in itertools.pairwise([*heads, (len(lines) - 1, None)]):
        cached = any(text.startswith("--> Using cache") for _, text in lines[start:end])
        if instruction:
            found.append((instruction, None if cached else lines[end][0] - lines[start][0]))
    return found


def accuracy(lines: list[tuple[int, str]]) -> str:
    """What the run in a log ended with, from the object that it prints last; empty where there was none."""
    for _, text in reversed(lines):
        if text.startswith('{"method": '):
            summary = json.loads(text)
            before, after = (f"{100 * summary[key]:.1f} %" for key in ("before", "after"))
            return f"steps: {summary['steps']}, held-out accuracy {before} before and {after} after"
    return ""


def rows(work: Path) -> list[list[str | int | None]]:
    """A row for each part that has a log, and one for each RUN that was executed in it."""
    found = []
    for part, what in WHAT.items():
        log = work / f"{part}.log"
        if not log.exists():
            continue
        lines = read(log)
        status = next((text for _, text in reversed(lines) if text.startswith("[image] ")), "not ended")
        sizes = [text for _, text in lines if text.startswith("size: ")]
        notes = [status.rpartition(": ")[2], *sizes, *filter(None, [accuracy(lines)])]
        found.append([part, what, lines[-1][0], "; ".join(notes)])
        for instruction, seconds in steps(lines):
            if instruction.startswith("RUN ") and seconds is not None:
                found.append([part, f"`{instruction}`", seconds, None])
    return found


def main() -> None:
    work, out = map(Path, sys.argv[1:])
    found = rows(work)
    about = "The images built and run without Docker, by buildah"
    write_results(out, about, COLUMNS, found, "42 (the quickstart's)", "`sudo bash scripts/image.sh WORK`")
    for part, what, seconds, result in found:
        print(f"{part:8} {seconds:5} s  {what}{f': {result}' if result else ''}")
    print(f"log: {work}/*.log, record: {out}")


if __name__ == "__main__":
    main()
