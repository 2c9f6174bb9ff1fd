"""Reward functions as users write them, for tests/test_verify_rewards.py."""

import json
import os
import time

import numpy as np


def obey(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0, **more):
    """Do what the response says."""
    if solution_str == "hang":
        time.sleep(600)
    if solution_str == "hoard":
        kept = []
        while True:
            kept.append("x" * 10**6)
    if solution_str == "raise":
        raise KeyError("broken")
    if solution_str == "done":
        os._exit(0)
    if solution_str == "arguments":
        truth = f"{type(ground_truth).__name__} {ground_truth.tolist()}"
        index = f"{type(extra_info['index']).__name__} {extra_info['index']}"
        return {"score": 1.0, "told": json.dumps([data_source, truth, index, bonus, str(more)])}
    return {
        "number": np.float32(1),
        "nan": float("nan"),
        "none": None,
        "text": "1.0",
        "list": [1.0],
        "no score": {"acc": 1.0},
        "bad score": {"score": None},
        "object": {"score": 1.0, "mine": object()},
        "long": {"score": 1.0, "mine": "x" * 10**7},
        "entries": {
            **{"score": np.float64(0.5), "acc": np.bool_(True), "answer": np.str_("x")},
            **{"parts": np.array([1, 2]), "deep": {"a": (0.5, None)}},
        },
    }[solution_str]


async def later(data_source, solution_str, ground_truth, extra_info=None):
    return obey(data_source, solution_str, ground_truth, extra_info)
