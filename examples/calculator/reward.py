"""The reward: whether the last line of the rollout, calls and results of tools included, is the sum."""

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """verl's signature. solution_str: the response as text, its control tokens left out."""
    lines = solution_str.strip().splitlines()
    return float(bool(lines) and lines[-1].strip() == ground_truth)
