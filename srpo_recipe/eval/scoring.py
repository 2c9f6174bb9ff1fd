"""Which rule judges which task, and its verdicts: the verifiers of training, under their time limit."""

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

from srpo_recipe.eval.of_run import Judged
from srpo_recipe.eval.questions import Question
from srpo_recipe.verify import BENCHMARKS, MODES, VERIFIERS, Verdict, resolve
from srpo_recipe.verify.contract import checked, entries
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.processes.openers import awaited
from srpo_recipe.verify.processes.worker import error_text
from srpo_recipe.verify.settings import VerifierConfig

# Tasks with a reward function of their own, in verl's signature. A data_source belongs to the row that it begins with.
REWARDS = {
    "sums": "srpo_recipe.starter.sums:compute_score",
    "reasoning_gym/": "srpo_recipe.starter.gym:compute_score",
}


@dataclass(frozen=True)
class Rule:
    """How a task is judged. kind: "verifier" (a name of srpo_recipe.verify.resolve) or "reward" (a function's name with verl's
    compute_score signature, which runs in this process and without a limit, as verl would run it); options: arguments that it
    gets besides, as JSON."""

    kind: str
    name: str
    mode: str
    options: str = ""


def rule_for(
    task: str, mode: str | None, verifier: str | None = None, reward: str | None = None, of_run: Judged | None = None
) -> Rule:
    """The rule that the command line names, the run's where it is a function of the user's, the task's own, or else the run's.

    mode: None for the run's. of_run: how the run judges that the model is of. Raises ValueError with the fix when there is none.
    """
    run = of_run or Judged()
    own = next((function for prefix, function in REWARDS.items() if task.startswith(prefix)), None)
    known = None if task in BENCHMARKS else own
    if not verifier and not reward:
        verifier, reward = _of_user(run)
    if not verifier and not reward:
        reward = known
        verifier = None if known else BENCHMARKS.get(task)
    if not verifier and not reward:
        verifier, reward = run.verifier, run.reward
    if reward:
        if mode not in (None, MODES[0]):
            raise ValueError(f"{task} is judged by the reward function {reward}, which has no mode {mode!r}")
        _function(reward)
        return Rule("reward", reward, MODES[0], run.options if reward == run.reward else "")
    if verifier is None:
        raise ValueError(
            f"no verifier belongs to the data_source {task!r}: give --verifier (choice, tool_use, math, or a function of your "
            "own) or --reward package.module:function with verl's compute_score signature"
        )
    resolve(verifier, mode or run.mode)
    return Rule("verifier", verifier, mode or run.mode)


def _of_user(run: Judged) -> tuple[str | None, str | None]:
    """(verifier, reward) of a run where it is a function of the user's: the task's own rule would judge otherwise."""
    ours = set(VERIFIERS) | set(REWARDS.values())
    return (
        None if run.verifier in ours else run.verifier,
        None if run.reward in ours else run.reward,
    )


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
                rule.name,
                rule.mode,
                self._limits.time_limit,
                self._limits.processes,
                self._limits.memory_mb,
                percent=self._limits.percent,
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
        gives verdicts that are parsed, but have none: then nothing can vote. As in training it may be async, and where it raises
        or gives no number the verification has failed.
        """
        function = _function(rule.name)
        try:
            given = function(
                data_source=question.task,
                solution_str=text,
                ground_truth=question.ground_truth,
                extra_info=question.extra_info,
                **(json.loads(rule.options) if rule.options else {}),
            )
            found = entries(asyncio.run(awaited(given)) if inspect.isawaitable(given) else given)
            reward = float(found["acc"] if found.get("acc") is not None else found["score"])
        except Exception as error:  # a user's function raises anything
            return Verdict(0.0, None, False, failure="crash", error=error_text(error))
        answer = None if found.get("answer") is None else str(found["answer"])
        parsed = answer is not None or "answer" not in found
        try:
            return checked(Verdict(reward, answer, parsed, failure=found.get("failure")))
        except ValueError as error:
            raise ValueError(f"{rule.name}: {error}; let it return that as acc, beside the score") from error
