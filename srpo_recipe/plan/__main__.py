"""`python -m srpo_recipe.plan [options] [Hydra overrides as in training]`; the console script is `srpo-plan`."""

import argparse
import json
import sys

from srpo_recipe.plan.architecture import describe_model
from srpo_recipe.plan.device import RESERVE, device_of
from srpo_recipe.plan.plan import plan
from srpo_recipe.plan.setup import from_config
from srpo_recipe.plan.show import check_picture, picture, text
from srpo_recipe.plan.step import Expectation
from srpo_recipe.settings.arguments import real
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.kinds import above, at_least, within
from srpo_recipe.settings.rules import check


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="srpo-plan", description=__doc__)
    add = parser.add_argument
    size, tokens = real(above(0)), real(above(0))
    add("--memory", type=size, metavar="GIB", help="memory of a rank's device; default: what is found, or 80 GB")
    add("--reserve", type=real(at_least(0)), metavar="GIB", help=f"kept back of it (default {RESERVE})")
    add("--prompt", type=tokens, default=200, metavar="TOKENS", help="expected mean prompt (default 200)")
    add("--response", type=tokens, default=400, metavar="TOKENS", help="expected mean response (default 400)")
    share = "expected share on the teacher's route (0.4)"
    add("--routed", type=real(within(0, 1)), default=0.4, metavar="SHARE", help=share)
    add("--plot", metavar="FILE", help="bars of memory by item against the number of ranks")
    add("--json", action="store_true", help="one JSON object, in bytes")
    add("overrides", nargs="*", help="as in training, for instance model=qwen3_8b hardware=gpu8")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: the run fits. 1: it does not. 2: the config or the model cannot be read."""
    args = parse(arguments)
    try:
        if args.plot:
            check_picture(args.plot)
        config = compose_config(args.overrides)
        settings = check(config)
        setup = from_config(config)
        arch = describe_model(config.actor_rollout_ref.model.path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = device_of(setup, args.memory, args.reserve)
    expected = Expectation(
        min(args.prompt, setup.prompt),
        min(args.response, setup.response),
        args.routed if settings.needs_teacher else 0.0,
    )
    found = plan(arch, setup, device, expected)
    print(json.dumps(found) if args.json else text(found))
    if args.plot:
        picture(arch, setup, device, args.plot)
    return 0 if found["fits"] else 1


if __name__ == "__main__":
    sys.exit(main())
