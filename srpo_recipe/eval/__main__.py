"""Evaluate a model: n samples of each question, judged as in training, and avg@k, pass@k, maj@k with intervals.

    python -m srpo_recipe.eval MODEL --data FILE.parquet [FILE.parquet ...] --out DIR

MODEL is a Hugging Face folder, OWNER/NAME on the hub, or a checkpoint of training: a run's folder (its latest step) or one
global_step_N; its shards are merged on the fly. FILE holds verl's rows, as scripts/prepare_data.sh writes them; the verifier
follows from their data_source, or else from the run's own config.yaml, which also says system prompt, chat options and mode.
Started again after an interruption, it goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_recipe.data.checks import CHAT_SWITCHES
from srpo_recipe.eval.evaluate import evaluate
from srpo_recipe.export import WEIGHTS
from srpo_recipe.settings.arguments import integer, json_object, real
from srpo_recipe.settings.kinds import above, at_least, whole, within
from srpo_recipe.settings.ranges import COUNT, SHARE
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify import MODES, PERCENT
from srpo_recipe.verify.settings import VerifierConfig


def arguments(command: Sequence[str] | None = None) -> argparse.Namespace:
    limits = VerifierConfig()
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model")
    add("--data", type=Path, nargs="+", required=True, metavar="FILE")
    add("--out", type=Path, required=True, help="folder for the results; an evaluation that began there is continued")
    add("--weights", choices=WEIGHTS, help="of a checkpoint (default: student)")
    add("--n", type=integer(COUNT), default=16, help="samples of each question (default: %(default)s)")
    add("--temperature", type=real(at_least(0)), default=0.6, help="default: %(default)s")
    add("--top-p", type=real(SHARE), default=0.95, help="default: %(default)s")
    add("--max-tokens", type=integer(COUNT), default=8192, help="longest answer (default: %(default)s)")
    add("--max-prompt-tokens", type=integer(COUNT), help="longest prompt (default: what the model has room for)")
    add("--seed", type=integer(whole(0)), default=0, help="of the samples and of the intervals (default: %(default)s)")
    add("--limit", type=integer(COUNT), help="only the first questions of each file")
    add("--verifier", help="choice, tool_use, math, or a verifier of your own, package.module:function")
    add("--reward", help="instead: package.module:function or file.py:function with verl's compute_score signature")
    add(
        "--percent", choices=PERCENT, help=f"of math: whether 28 answers 28%% (default: the run's, or {limits.percent})"
    )
    help_of_right = f"reward from which a sample is right (default: the run's, or {SRPOConfig.correct_threshold})"
    add("--right-from", type=real(within(-1e9, 1e9)), metavar="REWARD", help=help_of_right)
    add("--mode", choices=MODES, help=f"of the verifier (default: the run's, or {limits.mode})")
    add(
        "--time-limit",
        type=real(above(0)),
        help=f"seconds of a verification (default: the run's, or {limits.time_limit})",
    )
    add(
        "--processes",
        type=integer(COUNT),
        default=limits.processes,
        help="verifications at a time (default: %(default)s)",
    )
    add("--system-prompt", help="put before chats without a system turn (default: the run's, or none)")
    add("--chat-options", type=json_object, help=f"JSON (default: the run's, or {json.dumps(CHAT_SWITCHES)})")
    add("--engine", nargs="+", default=[], metavar="KEY=VALUE", help="of vllm.LLM, as tensor_parallel_size=8")
    help_of_chunk = "questions that are asked at a time, and lost by a kill (default: %(default)s)"
    add("--chunk", type=integer(COUNT), default=32, help=help_of_chunk)
    args = parser.parse_args(command)
    if args.temperature == 0 and args.n > 1:
        parser.error("--temperature 0 gives the same sample every time: add --n 1")
    if args.verifier and args.reward:
        parser.error("--verifier and --reward are two rules: give one of them")
    if wrong := [pair for pair in args.engine if "=" not in pair]:
        parser.error(f"--engine takes KEY=VALUE, not {wrong[0]!r}")
    return args


def main() -> None:
    try:
        evaluate(arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
