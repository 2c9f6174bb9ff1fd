"""A node of a Ray cluster, of which nothing lives on. By itself, an agent of Ray that has lost its head waits for it without end.

`python -m srpo_recipe.run.node ray start --block ...` is that command with a process in front (guard.py), for ray_head.sh and
ray_join.sh.
"""

import os
import sys

from srpo_recipe.run.guard import guarded

USAGE = "usage: python -m srpo_recipe.run.node COMMAND [ARGUMENTS]    (ends all that COMMAND has started when it ends)"


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit(USAGE)
    if command[0] in ("-h", "--help"):
        print(USAGE)
        return
    guarded(lambda: os.execvp(command[0], command))


if __name__ == "__main__":
    main()
