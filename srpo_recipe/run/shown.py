"""The rollouts of a step that a reader will see: which they are, and their rows for the file of samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from srpo_recipe.method.decision import Decision, Rollouts
from srpo_recipe.method.seeds import checksum
from srpo_recipe.records import samples
from srpo_recipe.run.token_texts import TokenTexts


def shown_rows(rollouts: Rollouts, groups: int, seed: int, step: int) -> list[int]:
    """The rows of so many groups of a step, group by group, drawn with the run's seed whatever became of them."""
    places: dict[int, tuple[int, int]] = {}
    for row in torch.nonzero(rollouts.real_B).flatten().tolist():
        index, group = int(rollouts.index_B[row]), int(rollouts.group_B[row])
        places.setdefault(group, (checksum(seed, "samples", step, index), group))
    chosen = {group: place for place, group in enumerate(sorted(places, key=places.__getitem__)[:groups])}
    wanted = (rollouts.real_B & rollouts.last_B).tolist()  # of a rollout of several rows the one that was verified
    rows = [row for row, group in enumerate(rollouts.group_B.tolist()) if group in chosen and wanted[row]]
    return sorted(rows, key=lambda row: (chosen[int(rollouts.group_B[row])], int(rollouts.session_B[row])))


def rows(
    decision: Decision,
    shown: Sequence[int],
    prompts: Sequence[Sequence[int]],
    infos: Sequence[Mapping[str, Any]],
    seen: Mapping[int, Mapping[str, np.ndarray]],
    texts: TokenTexts,
) -> list[dict[str, Any]]:
    """Rows of records/samples.py.

    shown: from `shown_rows`; prompts: token ids of their students' prompts; infos: of every row of the batch, what the reward
    function gave beside the reward; seen: by row, what the update saw of the tokens (training/seen.py).
    """
    groups = {int(decision.rollouts.group_B[row]): None for row in shown}
    number = {group: place for place, group in enumerate(groups)}
    found = []
    for row, prompt in zip(shown, prompts, strict=True):
        sample = _rollout(decision, row, infos[row], texts)
        sample |= {"group": number[int(decision.rollouts.group_B[row])], "prompt": texts.text(prompt)}
        found.append(sample | _tokens(seen.get(row, {}), texts))
    return found


def _rollout(decision: Decision, row: int, info: Mapping[str, Any], texts: TokenTexts) -> dict[str, Any]:
    rollouts, prompt, sibling = decision.rollouts, decision.prompts.get(row), decision.siblings.get(row)
    same_group = sibling is not None and bool(rollouts.group_B[sibling] == rollouts.group_B[row])
    policy, distill = bool(decision.route.policy_B[row] > 0), bool(decision.route.distill_B[row] > 0)
    tokens = texts.pieces(rollouts.responses[row].tolist())
    return {
        "index": int(rollouts.index_B[row]),
        "session": int(rollouts.session_B[row]),
        "response": "".join(tokens),
        "reward": float(rollouts.reward_B[row]),
        "correct": bool(decision.correct_B[row]),
        "verdict": samples.verdict_text(info),
        "route": {(1, 0): "grpo", (0, 1): "sdpo", (1, 1): "both", (0, 0): "none"}[policy, distill],
        "sibling": int(rollouts.session_B[sibling]) if sibling is not None and same_group else None,
        "teacher_prompt": None if prompt is None else texts.text(prompt.ids),
        "shortened": None if prompt is None else prompt.shortened,
        "token": tokens,
    }


def _tokens(seen: Mapping[str, np.ndarray], texts: TokenTexts) -> dict[str, Any]:
    """What was seen of a rollout's tokens, under the names of the columns, the words as text. A number a token stays an array,
    which goes into a file several times as fast as a list.
    """
    ids = {"student_ids": "student_words", "teacher_ids": "teacher_words"}
    found = {name: values if values.ndim == 1 else values.tolist() for name, values in seen.items() if name not in ids}
    return found | {words: texts.words(seen[name].tolist()) for name, words in ids.items() if name in seen}


def held_out_rows(
    questions: Sequence[str],
    prompts: Sequence[str],
    responses: Sequence[str],
    rewards: Sequence[float],
    infos: Mapping[str, Sequence[Any]],
    groups: int,
    seed: int,
    threshold: float,
) -> list[dict[str, Any]]:
    """Rows of records/samples.py for so many questions of a validation, at every validation the same ones.

    questions: a label of each sample's question; prompts, responses: texts; infos: the reward function's entries, a value for
    each sample; threshold: from which reward on a sample is right (its entry "acc", where the function gives one).
    """
    drawn: dict[str, tuple[int, str]] = {}
    for question, prompt in zip(questions, prompts, strict=True):
        drawn.setdefault(question, (checksum(seed, "samples", prompt), prompt))
    chosen = {name: place for place, name in enumerate(sorted(drawn, key=drawn.__getitem__)[:groups])}
    sessions = dict.fromkeys(chosen, 0)
    found = []
    for row, question in enumerate(questions):
        if question not in chosen:
            continue
        info = {name: values[row] for name, values in infos.items() if name != "reward"}
        right = rewards[row] if info.get("acc") is None else float(info["acc"])
        found.append(
            {
                "group": chosen[question],
                "session": sessions[question],
                "prompt": prompts[row],
                "response": responses[row],
                "reward": float(rewards[row]),
                "correct": right >= threshold,
                "verdict": samples.verdict_text(info),
            }
        )
        sessions[question] += 1
    return sorted(found, key=lambda row: (row["group"], row["session"]))
