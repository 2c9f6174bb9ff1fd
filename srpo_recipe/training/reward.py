"""verl's custom reward function: what its reward workers call for every rollout. A verifier, or one of the user's own.

verl awaits it, so a verification that takes its time holds up no other one of the worker.
"""

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from srpo_recipe.verify.failures import FOLDER, FailureLog
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.rewards import RewardPool
from srpo_recipe.verify.settings import VerifierConfig, from_plain
from srpo_recipe.verify.shaping import shape

_opened: dict[str, tuple[VerifierConfig, VerifierPool]] = {}
_limited: dict[str, RewardPool] = {}
_lock = threading.Lock()


def _open(key: str, verifier: Mapping[str, Any], run_dir: str) -> None:
    with _lock:
        if key not in _opened:
            settings = from_plain(verifier)
            assert settings.name is not None, "srpo.verifier.name is not set"
            pool = VerifierPool(
                settings.name,
                settings.mode,
                settings.time_limit,
                settings.processes,
                settings.memory_mb,
                FailureLog(Path(run_dir) / FOLDER),
                settings.percent,
            )
            _opened[key] = settings, pool


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    verifier: Mapping[str, Any],
    run_dir: str,
    feedback: bool = False,
    **_,
) -> dict[str, Any]:
    """Score one response. The first four arguments are verl's; the others come from `reward_kwargs` (settings.wire).

    extra_info: the row's own, and what the agent loop knows of the rollout; "truncated" is read. verifier: the section
    srpo.verifier. run_dir: failed verifications are kept below it. feedback: whether the teacher wants the verdict's
    text.

    Returns, on every row, score (with shaping), acc (the verdict's reward), answer, parsed, truncated, failure, error and
    feedback.
    """
    key = json.dumps([_plain(verifier), run_dir])
    if key not in _opened:
        await asyncio.to_thread(_open, key, verifier, run_dir)  # starts processes: seconds, once
    settings, pool = _opened[key]
    verdict = await asyncio.wrap_future(pool.submit(solution_str, ground_truth))
    truncated = bool((extra_info or {}).get("truncated", False))
    shaping = settings.shaping
    score = shape(
        verdict,
        solution_str,
        truncated,
        shaping.require_reasoning,
        shaping.min_characters,
        shaping.truncation_penalty,
    )
    return {
        "score": score,
        "acc": verdict.reward,
        "answer": verdict.answer,
        "parsed": verdict.parsed,
        "truncated": truncated,
        "failure": verdict.failure,
        "error": verdict.error,
        "feedback": verdict.feedback if feedback else None,
    }


async def limited_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    function: str,
    fixed: Mapping[str, Any],
    limits: Mapping[str, Any],
    run_dir: str,
    **more: Any,
) -> dict[str, Any]:
    """Score one response with a reward function of the user's, under the verifiers' limits (settings.wire makes verl call this).

    function, fixed: its name and the arguments that it always gets. limits: time_limit, processes and memory_mb of
    srpo.verifier. Returns what the function gives, as `RewardPool.submit` has it.
    """
    key = json.dumps([function, run_dir])
    if key not in _limited:
        await asyncio.to_thread(_open_limited, key, function, _plain(fixed), _plain(limits), run_dir)
    call = {"data_source": data_source, "solution_str": solution_str, "ground_truth": ground_truth}
    return await asyncio.wrap_future(_limited[key].submit(**call, extra_info=extra_info, **more))


def _open_limited(key: str, function: str, fixed: Mapping, limits: Mapping, run_dir: str) -> None:
    with _lock:
        if key not in _limited:
            _limited[key] = RewardPool(function, fixed, **limits, on_failure=FailureLog(Path(run_dir) / FOLDER))


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    found = OmegaConf.to_container(section) if OmegaConf.is_config(section) else dict(section)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}
