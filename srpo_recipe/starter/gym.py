"""Tasks of reasoning-gym: generated problems with a verifier of their own, for a small pretrained model and no network.

Any of its datasets can be named in the config, with its parameters (config/task/gym.yaml shows how).

The ground truth of a row is JSON, the problem's answer and metadata, so that the dataset's own `score_answer` decides
about a response. It gives part of a point to an answer lost in other words; here a response is right or wrong.

reasoning_gym and pyarrow are imported where they are used. No verl, ray or torch.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srpo_recipe.method.chat import fill
from srpo_recipe.starter.splits import SPLITS, split_of, verl_row, write_splits

SOURCE = "reasoning_gym/"
ABILITY = "reasoning"
# Problems looked at for each one wanted, before the dataset counts as too small.
DRAWS = 100
# Only the end of a response is read, so that a long one costs no time.
READ_CHARACTERS = 2000

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")
_AROUND = " \t\r\"'`*."


# ---- problems ----


def draw(dataset: str, parameters: Mapping[str, Any], sizes: Mapping[str, int], seed: int) -> dict[str, list[dict]]:
    """Distinct problems by split, `sizes[split]` of each, in the dataset's order.

    dataset, parameters: a name that reasoning-gym knows and the fields of its config. Raises ValueError when they are
    wrong, or when the dataset holds too few distinct questions.
    """
    import reasoning_gym

    limit = DRAWS * sum(sizes.values())
    try:
        source = reasoning_gym.create_dataset(dataset, seed=seed, size=limit, **parameters)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym refuses dataset {dataset!r} with {dict(parameters)}: {error}") from error
    problems: dict[str, list[dict]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for number in range(limit):
        problem = source[number]
        question = problem["question"].strip()
        split = split_of(question)
        if question not in seen and len(problems[split]) < sizes[split]:
            seen.add(question)
            problems[split].append(problem)
        if all(len(problems[split]) == sizes[split] for split in SPLITS):
            return problems
    found = {split: len(problems[split]) for split in SPLITS}
    raise ValueError(f"{dataset} with {dict(parameters)} gave only {found} distinct problems; ask for fewer")


def ground_truth(problem: Mapping[str, Any]) -> str:
    """What the verifier needs of a problem, as text."""
    return json.dumps({"answer": problem["answer"], "metadata": problem["metadata"]}, default=str)


# ---- verifier ----


@functools.cache
def _scorer(dataset: str):
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(dataset)


def answer_of(response: str, like: str) -> str:
    """The answer that a response ends in, in the form of the gold answer `like`.

    Where that is a number the last number, otherwise the last line without the quotes and full stop around it.
    """
    text = response[-READ_CHARACTERS:].strip()
    if _NUMBER.fullmatch(like.strip()):
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else ""
    return text.rsplit("\n", 1)[-1].strip(_AROUND)


def verify(data_source: str, response: str, ground_truth: str) -> float:
    """1.0 if the dataset named by `data_source` gives the answer of `response` full marks, else 0.0; never raises."""
    try:
        problem = json.loads(ground_truth)
        score = _scorer(data_source.removeprefix(SOURCE))
        answers = (answer_of(response, problem["answer"]), response.strip())
        return float(any(score(answer, problem) >= 1.0 for answer in answers))
    except Exception:  # a dataset's own parser may raise anything at what a model writes
        return 0.0


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> dict[str, Any]:
    """verl's `reward.custom_reward_function`: path `pkg://srpo_recipe.starter.gym`, name `compute_score`.

    `answer` is what `answer_of` reads, None where it reads nothing; a majority vote counts it.
    """
    reward = verify(data_source, solution_str, ground_truth)
    answer = answer_of(solution_str, str(json.loads(ground_truth)["answer"]))
    return {"score": reward, "acc": reward, "answer": answer or None}


# ---- files ----


def rows(dataset: str, split: str, problems: list[dict], template: str) -> Iterator[dict]:
    """The rows of verl's RL dataset. template: the user turn, with `{question}` in it.

    Raises ValueError for a problem whose own answer the verifier refuses: no response could be right.
    """
    for index, problem in enumerate(problems):
        truth, source = ground_truth(problem), SOURCE + dataset
        if verify(source, str(problem["answer"]), truth) != 1.0:
            raise ValueError(f"{dataset} does not accept its own answer {problem['answer']!r} as text; choose another")
        yield verl_row(source, ABILITY, fill(template, question=problem["question"].strip()), truth, split, index)


def write_parquet(
    out_dir: str | Path,
    dataset: str,
    parameters: Mapping[str, Any],
    train_size: int,
    test_size: int,
    seed: int,
    template: str = "{question}",
) -> dict[str, Path]:
    """Write `train.parquet` and `test.parquet` under `out_dir`; returns their paths by split.

    Each file appears whole or not at all.
    """
    if "{question}" not in template:
        raise ValueError("task.generate.template lacks {question}")
    problems = draw(dataset, parameters, dict(zip(SPLITS, (train_size, test_size), strict=True)), seed)
    data = {split: list(rows(dataset, split, problems[split], template)) for split in SPLITS}
    return write_splits(out_dir, data)
