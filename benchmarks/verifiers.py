"""Random and adversarial responses through every verifier, each under its limit.

    python benchmarks/verifiers.py [--count 100000] [--seed 0] [--verifier choice tool_use math]

One JSON object for each verifier and mode: responses, crashes, time-outs, rewards given, the slowest in seconds (of CPU
for those that run in the caller's thread, of wall clock for the others), responses a second, and the machine. Random
are texts over the pieces that the formats are made of, mutations of right responses, and noise; adversarial those of
srpo_recipe.verify.adversarial, which come once in every thousand for mathematics, where most take the whole limit.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

from tqdm import tqdm

from srpo_recipe.verify import VERIFIERS
from srpo_recipe.verify.adversarial import GARBAGE, HOSTILE_MATH
from srpo_recipe.verify.pool import LINEAR, VerifierPool
from srpo_recipe.verify.settings import VerifierConfig

CALL = '[{"Action": "look", "Action_Input": "{\\"id\\": 7, \\"at\\": {\\"x\\": [1, 2.5]}}"}]'
# verifier -> pairs of a ground truth and a right response, and the pieces that random responses are made of
EXAMPLES = {
    "choice": [(letter, f"<reasoning>\nso\n</reasoning>\n<answer>\n{letter}\n</answer>") for letter in "ABCD"],
    "tool_use": [
        (CALL, 'Thought: so\nAction: look\nAction Input: {"at": {"x": [1, 2.5]}, "id": 7}'),
        ('[{"Action": "look", "Action_Input": "{}"}]', "Action: look\nAction Input: {}"),
    ],
    "math": [
        (truth, rf"so \boxed{{{truth}}}")
        for truth in ("42", r"\frac{1}{2}", "(1, 2)", "x^2+1", r"2\sqrt{3}", r"\{1, 2\}", "1.5e-8", r"\text{east}")
    ],
}
PIECES = {
    "choice": ["<answer>", "</answer>", "<reasoning>", "</reasoning>", "<think>", "</think>", *"ABCD", *"abc(). \n"],
    "tool_use": ["Action:", "Action Input:", "Thought:", "\n", " look", '{"id": 7}', *'{}[]":,\\ ', "7", "null", "1e9"],
    "math": [
        r"\boxed{",
        r"\frac{",
        r"\sqrt{",
        *"}{()[]^_+-*/=,.<> \n$",
        *"0123456789",
        "x",
        "y",
        r"\pi",
        r"\sin",
        r"\infty",
    ]
    + [
        r"\text{",
        r"\{",
        r"\}",
        r"\cdot",
        r"\le",
        "answer",
        " is ",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        "&",
        r"\\",
        "%",
    ],
}
NOISE = [chr(code) for code in (*range(1, 128), 0xE9, 0x3B1, 0x4E2D, 0x202E, 0xD800, 0x1F600)]


def mutated(draw: random.Random, text: str) -> str:
    """`text` with a few characters dropped, doubled, swapped or replaced."""
    letters = list(text)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(letters)) if letters else 0
        change = draw.randrange(3)
        letters[place : place + 1] = [[], letters[place : place + 1] * 2, [draw.choice(NOISE)]][change]
    return "".join(letters)


def responses(verifier: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(response, ground truth): two fifths of pieces, two fifths mutations, the rest noise and the adversarial ones."""
    draw = random.Random(f"{verifier}/{seed}")
    hostile = [*GARBAGE, *HOSTILE_MATH.values()]
    for number in range(count):
        truth, right = draw.choice(EXAMPLES[verifier])
        kind = draw.random()
        if number % 1000 == 0 or (verifier in LINEAR and kind < 0.02):
            yield hostile[(number // 1000 if verifier not in LINEAR else number) % len(hostile)], truth
        elif kind < 0.4:
            opening = r"\boxed{" if verifier == "math" and kind < 0.3 else ""
            text = opening + "".join(draw.choices(PIECES[verifier], k=draw.randint(1, 40)))
            yield text + "}" * bool(opening), truth
        elif kind < 0.8:
            yield mutated(draw, right), truth
        elif kind < 0.9:
            yield right, truth
        else:
            yield "".join(draw.choices(NOISE, k=draw.randint(0, 400))), truth


class Stress:
    """Responses on their way through a pool, and what came of them."""

    def __init__(self, pool: VerifierPool, clock: Callable[[], float]):
        self.pool, self.clock = pool, clock
        self.waiting: deque = deque()
        self.clear()

    def clear(self) -> None:
        """Forget what was judged."""
        self.failures: Counter = Counter()
        self.rewarded = self.slowest = 0.0

    def submit(self, response: str, truth: str) -> None:
        begun, seconds = self.clock(), [0.0]
        future = self.pool.submit(response, truth)
        future.add_done_callback(lambda _: seconds.__setitem__(0, self.clock() - begun))
        self.waiting.append((future, seconds))

    def take(self) -> None:
        """Wait for the first one."""
        future, seconds = self.waiting.popleft()
        verdict = future.result()
        self.failures[verdict.failure] += 1
        self.rewarded += verdict.reward
        self.slowest = max(self.slowest, seconds[0])


def stress(verifier: str, mode: str, count: int, seed: int) -> dict:
    """What one verifier does with `count` responses."""
    defaults, linear = VerifierConfig(), verifier in LINEAR
    with VerifierPool(verifier, mode, defaults.time_limit, defaults.processes, defaults.memory_mb) as pool:
        run = Stress(pool, time.thread_time if linear else time.monotonic)
        run.submit(*reversed(EXAMPLES[verifier][0]))
        run.take()  # the processes have started
        run.clear()
        started = time.monotonic()
        for row in tqdm(responses(verifier, count, seed), total=count, desc=f"{verifier}, {mode}", disable=None):
            run.submit(*row)
            # as many at a time as there are processes, so that the time of a response holds no waiting for another
            while len(run.waiting) >= (1 if linear else defaults.processes):
                run.take()
        while run.waiting:
            run.take()
        elapsed = time.monotonic() - started
    return {
        "verifier": verifier,
        "mode": mode,
        "responses": count,
        "seed": seed,
        "crashes": run.failures["crash"],
        "timeouts": run.failures["timeout"],
        "rewarded": round(run.rewarded),
        "slowest_seconds": round(run.slowest, 3),
        "time_limit": None if linear else defaults.time_limit,
        "processes": None if linear else defaults.processes,
        "seconds": round(elapsed, 1),
        "responses_per_second": round(count / elapsed, 1),
        **machine(),
    }


def machine() -> dict:
    """What the figures depend on."""
    return {"python": platform.python_version(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verifier", nargs="+", choices=list(VERIFIERS), default=list(VERIFIERS))
    options = parser.parse_args()
    for verifier in options.verifier:
        for mode in ("strict", "published") if verifier in LINEAR else ("strict",):
            print(json.dumps(stress(verifier, mode, options.count, options.seed)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
