"""Build the quickstart's model from nothing: a tiny Qwen3 that can add, under bad habits.

A warm start by supervised training, on one process and one thread, deterministic given --seed. The corpus has two kinds
of examples of the additions task (srpo_recipe/starter/sums.py):

- plain prompts, whose solutions slip at every step with probability --slip. The skill is there, under bad habits, as in
  a pretrained model. (Trained on clean solutions but for too short, a model fails for lack of skill, and reinforcement
  learning cannot add it.)
- prompts in the self-teacher's format, which show a correct solution; the target is a correct one in an order of its
  own.

So the model knows how to be right, and does it when it is shown that somebody was. Reinforcement learning has to make
that its habit.

    python -m srpo_recipe.starter.tiny --out srpo_recipe/assets/tiny_qwen3

--task picks makes one for srpo_recipe/starter/picks.py, from the weights of --start in a fraction of the time:

    python -m srpo_recipe.starter.tiny --task picks --start srpo_recipe/assets/tiny_qwen3 --out outputs/models/tiny_picks \
        --steps 400 --lr 0.001 --slip 0.45
"""

import argparse
import sys
from pathlib import Path

from srpo_recipe.starter.tiny.build import build
from srpo_recipe.starter.tiny.warm_start import TASKS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.starter.tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an old one is replaced at the end")
    parser.add_argument("--task", choices=TASKS, default="sums")
    parser.add_argument("--start", type=Path, help="folder of a model of the same shape to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128, help="width, a multiple of 64 (heads of 32)")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--slip", type=float, default=0.35, help="probability that a step of a plain solution slips")
    parser.add_argument("--shown-share", type=float, default=0.35, help="share of examples in the teacher's format")
    parser.add_argument("--threads", type=int, default=1, help="more than one may change the result's last digits")
    return parser.parse_args()


def main() -> None:
    failures = build(parse())
    if failures:
        sys.exit("not accepted: " + "; ".join(failures))


if __name__ == "__main__":
    main()
