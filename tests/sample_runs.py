"""Folders of runs with metrics and samples, made up, for the tests of the page."""

import json
import math
import random
from pathlib import Path

from srpo_recipe.records import samples

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "&amp;'\"\x00\x1b\u202e\ud800"
)
RIGHT, WRONG = 0, 1  # sessions


def rollout(step: int, group: int, session: int, draw: random.Random, tokens: int = 12, text: str = "") -> dict:
    """One of four rollouts of a group: the first is right, and the teachers of the others are shown it."""
    routed = session != RIGHT
    words = [f"{draw.randint(10, 99)}" if place % 2 else "+" for place in range(tokens)]
    words[-1] = f"={session}{text}"
    numbers = {name: [draw.uniform(-3, 0) for _ in words] for name in ("log_prob", "sampler_log_prob")}
    numbers["advantage"] = [0.75 if session == RIGHT else -0.25] * tokens
    row = {
        "group": group,
        "index": 100 * step + group,
        "session": session,
        "prompt": f"question {step}.{group}: 17+25=?",
        "response": "".join(words),
        "reward": float(not routed),
        "correct": not routed,
        "verdict": samples.verdict_text({"answer": words[-1], "parsed": True}),
        "route": "sdpo" if routed else "grpo",
        "token": words,
        "counted": [True] * tokens,
        **numbers,
    }
    if routed:
        liked = [[words[place], "yes", "no", "<b>", "\n"] for place in range(tokens)]
        chances = [[-0.1, -2.0, -3.0, -4.0, -5.0]] * tokens
        of_teacher = {name: [draw.random() for _ in words] for name in ("teacher_entropy", "weight", "divergence")}
        of_teacher["teacher_log_prob"] = [draw.uniform(-3, 0) for _ in words]
        row |= of_teacher | dict.fromkeys(samples.WORDS, liked) | dict.fromkeys(samples.WORD_LOG_PROBS, chances)
        row |= {"sibling": RIGHT, "teacher_prompt": f"{row['prompt']}\nCorrect solution: ...", "shortened": False}
    return row


def held_out(group: int, session: int) -> dict:
    prompt = f"held-out question {group}"
    row = {"group": group, "session": session, "prompt": prompt, "response": f"answer {session}"}
    return row | {"reward": 0.0, "correct": False}


def write_run(folder: Path, steps: int = 3, groups: int = 2, tokens: int = 12) -> Path:
    """A run of so many steps. The last rollout of step 2 holds HOSTILE in every text."""
    draw = random.Random(0)
    lines = []
    for step in range(steps + 1):
        if step in (0, steps):
            samples.write(folder, step, samples.HELD_OUT, [held_out(g, s) for g in range(2) for s in range(2)])
        line = {"step": step}
        if step in (0, steps):
            place = "sums/acc/mean@4"
            line |= {f"val-core/{place}": 0.4 + 0.1 * step, f"val-aux/{place}/low": 0.3, f"val-aux/{place}/high": 0.9}
        if step:
            rows = [rollout(step, g, s, draw, tokens) for g in range(groups) for s in range(4)]
            if step == 2:
                rows[-1] = rollout(step, groups - 1, 3, draw, tokens, HOSTILE)
                rows[-1] |= {
                    "prompt": HOSTILE,
                    "teacher_prompt": HOSTILE,
                    "verdict": samples.verdict_text({"answer": HOSTILE}),
                }
                rows[-1]["teacher_words"] = [[HOSTILE] * 5] * tokens
            samples.write(folder, step, samples.TRAIN, rows)
            line |= {"route/correct_share": 0.25, "route/distill_share": 0.75, "actor/grad_norm": math.exp(-step)}
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("method: {name: srpo}\nsrpo: {seed: 7}\n")
    return folder
