"""Which rule judges which task, and its verdicts: the verifiers of training, under their time limit."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

from srpo_recipe.eval.questions import Question
from srpo_recipe.verify import BENCHMARKS, MODES, Verdict, resolve
from srpo_recipe.verify.contract import checked
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.settings import VerifierConfig

# Tasks with a reward function of their own, in verl's signature. A data_source belongs to the row that it begins with.
REWARDS = {
    "sums": "srpo_recipe.starter.sums:compute_score",
    "reasoning_gym/": "srpo_recipe.starter.gym:compute_score",
}


@dataclass(frozen=True)
class Rule:
    """How a task is judged. kind: "verifier" (a name of srpo_recipe.verify.resolve) or "reward" (a function's name with verl's
    compute_score signature, which runs in this process and without a limit, as verl would run it)."""

    kind: str
    name: str
    mode: str


def rule_for(task: str, mode: str, verifier: str | None = None, reward: str | None = None) -> Rule:
    """The rule that the command line names, or else the task's own. Raises ValueError with the fix when there is none."""
    own = next((function for prefix, function in REWARDS.items() if task.startswith(prefix)), None)
    if reward or (own and not verifier and task not in BENCHMARKS):
        if mode != MODES[0]:
            raise ValueError(f"{task} is judged by the reward function {reward or own}, which has no mode {mode!r}")
        function = reward or str(own)
        _function(function)
        return Rule("reward", function, mode)
    name = verifier or BENCHMARKS.get(task)
    if name is None:
        raise ValueError(
            f"no verifier belongs to the data_source {task!r}: give --verifier (choice, tool_use, math, or a function of your "
            "own) or --reward package.module:function with verl's compute_score signature"
        )
    resolve(name, mode)
    return Rule("verifier", name, mode)


@functools.cache  # a file is run once, not for every sample
def _function(place: str) -> Callable:
    try:
        return function_at(place)
    except ValueError as error:
        raise ValueError(
            f"the reward function {place!r} cannot be had: {error}; name package.module:function or path/to/file.py:function"
        ) from error


class Scorer:
    """Judges responses; a context manager. rules: of every task that will be asked for."""

    def __init__(self, rules: dict[str, Rule], limits: VerifierConfig):
        self._rules, self._limits, self._pools = rules, limits, ExitStack()
        self._verifiers: dict[Rule, VerifierPool] = {}

    def __enter__(self) -> "Scorer":
        for rule in sorted({rule for rule in self._rules.values() if rule.kind == "verifier"}, key=str):
            pool = VerifierPool(
                rule.name, rule.mode, self._limits.time_limit, self._limits.processes, self._limits.memory_mb
            )
            self._verifiers[rule] = self._pools.enter_context(pool)
        return self

    def __exit__(self, *_) -> None:
        self._pools.close()

    def verdicts(self, questions: Sequence[Question], texts: Sequence[str]) -> list[Verdict]:
        """The verdict of each text as an answer to the question beside it."""
        return [one.result() for one in [self._submit(*pair) for pair in zip(questions, texts, strict=True)]]

    def _submit(self, question: Question, text: str) -> "Future[Verdict]":
        rule = self._rules[question.task]
        if rule.kind == "verifier":
            return self._verifiers[rule].submit(text, question.ground_truth)
        done: Future[Verdict] = Future()
        done.set_result(self._rewarded(rule, question, text))
        return done

    @staticmethod
    def _rewarded(rule: Rule, question: Question, text: str) -> Verdict:
        """A verdict from what a reward function returns: "acc", or else "score", and "answer". A function that reports no answer
        gives verdicts that are parsed, but have none: then nothing can vote.
        """
        found = _function(rule.name)(
            data_source=question.task,
            solution_str=text,
            ground_truth=question.ground_truth,
            extra_info=question.extra_info,
        )
        entries = found if isinstance(found, dict) else {"score": found}
        answer = None if entries.get("answer") is None else str(entries["answer"])
        reward = float(entries["acc"] if entries.get("acc") is not None else entries["score"])
        parsed = answer is not None or "answer" not in entries
        try:
            return checked(Verdict(reward, answer, parsed, failure=entries.get("failure")))
        except ValueError as error:
            raise ValueError(f"{rule.name}: {error}; let it return that as acc, beside the score") from error
