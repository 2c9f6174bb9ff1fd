"""Strict mathematics against made-up pairs whose truth is known: how many wrong ones score 1, how many right ones 0.

    python benchmarks/math_pairs.py [--count 10000] [--seed 0]

A pair is a ground truth and an answer. Right ones are the same value written in another way; wrong ones are near misses:
another sign, one digit, one index, a neighbour in an exponent or a factorial, two parts exchanged. One JSON object a rule: the
confusion matrix.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator

from environment import environment

from srpo_recipe.verify.math import verify
from srpo_recipe.verify.mathematics import published

Pair = tuple[str, str, bool]


def _number(draw: random.Random) -> Pair:
    n = draw.randint(2, 99_999)
    right = draw.choice(
        [f"{n:,}", f"{n}.0", f"0{n}", rf"\frac{{{2 * n}}}{{2}}", f"{n - 1}+1", rf"{n}\text{{ cm}}", f"+{n}"]
    )
    wrong = draw.choice([f"-{n}", str(n + draw.choice((-1, 1))), f"{n}0", f"{n}.1", str(n)[::-1] + "1"])
    return str(n), *draw.choice([(right, True), (wrong, False)])


def _fraction(draw: random.Random) -> Pair:
    p, q = draw.randint(1, 40), draw.randint(2, 40)
    k = draw.randint(2, 9)
    right = draw.choice(
        [
            f"{p}/{q}",
            rf"\frac{{{k * p}}}{{{k * q}}}",
            rf"\dfrac{{{p}}}{{{q}}}",
            rf"{p}\div{q}",
            rf"1-\frac{{{q - p}}}{{{q}}}",
        ]
    )
    wrong = draw.choice([f"{p}/{q + 1}", f"-{p}/{q}", f"{p + 1}/{q}", rf"\frac{{{p}}}{{{k * q}}}", f"{p}{q}"])
    return rf"\frac{{{p}}}{{{q}}}", *draw.choice([(right, True), (wrong, False)])


def _mixed(draw: random.Random) -> Pair:
    whole, q = draw.randint(1, 20), draw.randint(2, 12)
    p = draw.randint(1, q - 1)
    right = draw.choice([rf"{whole}\frac{{{p}}}{{{q}}}", rf"\frac{{{whole * q + p}}}{{{q}}}", f"{whole}+{p}/{q}"])
    wrong = draw.choice(
        [rf"\frac{{{whole + p}}}{{{q}}}", f"{whole}*{p}/{q}" if whole * p != whole * q + p else f"{whole}", str(whole)]
    )
    return f"{whole} {p}/{q}", *draw.choice([(right, True), (wrong, False)])


def _power(draw: random.Random) -> Pair:
    n = draw.randint(40, 400)
    truth = draw.choice([f"1-1/2^{{{n}}}", f"2^{{{n}}}+1", f"1/{n}!", rf"\frac{{1}}{{3^{{{n}}}}}"])
    near = truth.replace(str(n), str(n + draw.choice((-1, 1, 2))))
    right = truth if draw.random() < 0.5 else f"({truth})"
    return truth, *draw.choice([(right, True), (near, False), ("1" if truth.startswith("1-") else "0", False)])


def _radical(draw: random.Random) -> Pair:
    a, b = draw.randint(2, 12), draw.choice((2, 3, 5, 6, 7))
    right = draw.choice(
        [rf"{a}\sqrt{{{b}}}", f"{a}√{b}", rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}", rf"{a}\cdot {b}^{{1/2}}"]
    )
    wrong = draw.choice(
        [rf"{a}\sqrt{{{b + 4}}}", rf"-{a}\sqrt{{{b}}}", rf"\sqrt{{{a * b}}}" if a > 1 else "0", rf"{a}+\sqrt{{{b}}}"]
    )
    return rf"\sqrt{{{a * a * b}}}", *draw.choice([(right, True), (wrong, False)])


def _polynomial(draw: random.Random) -> Pair:
    a, b = draw.sample(range(1, 15), 2)
    right = draw.choice([f"x^2+{a + b}x+{a * b}", f"(x+{b})(x+{a})", f"x(x+{a + b})+{a * b}"])
    wrong = draw.choice(
        [f"x^2-{a + b}x+{a * b}", f"x^2+{a + b}x+{a * b + 1}", f"(y+{a})(y+{b})", f"x^3+{a + b}x+{a * b}"]
    )
    return f"(x+{a})(x+{b})", *draw.choice([(right, True), (wrong, False)])


def _several(draw: random.Random) -> Pair:
    a, b, c = draw.sample(range(-20, 21), 3)
    kind = draw.choice("tsi")
    if kind == "t":
        return f"({a},{b},{c})", *draw.choice(
            [(f"({a}, {b}, {c})", True), (f"({b},{a},{c})", False), (f"({a},{b})", False)]
        )
    if kind == "s":
        right = draw.choice([f"{c},{a},{b}", rf"\{{{b},{c},{a}\}}", rf"{a}, {b} \text{{ and }} {c}"])
        return rf"\{{{a},{b},{c}\}}", *draw.choice(
            [(right, True), (f"{a},{b},{c + 1}", False), (f"({a},{b},{c})", False)]
        )
    low, high = sorted((a, b))
    right = draw.choice([rf"{low}\le x<{high}", f"[{low}, {high})"])
    return f"[{low},{high})", *draw.choice([(right, True), (f"[{low},{high}]", False), (rf"{low}<x<{high}", False)])


def _written(draw: random.Random) -> Pair:
    n = draw.randint(2, 99)
    return draw.choice([
        (rf"{n}^\circ", str(n), True), (str(n), rf"{n}\%", True), (rf"{n}\%", rf"{n + 1}\%", False), ("10110_2", "10110", False),
        (f"a_{n}", f"a_{{{n}}}", True), (f"a_{n}", f"a_{n + 1}", False),
        ("listen", "silent", False), (r"\text{tea}", "tea", True),
        (rf"{n}\text{{ cm}}", rf"{n}\text{{ km}}", False), (f"x={n}", str(n), True), (f"x={n}", f"y={n}", False),
        (f"{n}e-30", f"{n + 1}e-30", False), (rf"{n}\pi", rf"{n + 1}\pi", False), (rf"{n}\pi", rf"\pi\cdot {n}", True),
    ])  # fmt: skip


KINDS = (_number, _fraction, _mixed, _power, _radical, _polynomial, _several, _written)


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """(ground truth, answer, whether they are the same)."""
    draw = random.Random(seed)
    for place in range(count):
        yield KINDS[place % len(KINDS)](draw)


def confusion(judge, made: list[Pair]) -> tuple[dict[str, int], list[Pair]]:
    """Counts by truth and reward, and the pairs that were judged wrong. A ground truth that is refused counts as reward 0."""
    counts, wrong = Counter(), []
    for truth, answer, right in made:
        try:
            reward = judge(rf"\boxed{{{answer}}}", truth).reward
        except ValueError:
            reward = 0.0
        counts[f"{'right' if right else 'wrong'}, reward {reward:.0f}"] += 1
        if (reward == 1.0) != right:
            wrong.append((truth, answer, right))
    return dict(sorted(counts.items())), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(environment("math-verify", "sympy")))
    made = list(pairs(args.count, args.seed))
    for name, judge in (("strict", verify), ("published", published.verify)):
        counts, wrong = confusion(judge, made)
        print(json.dumps({"rule": name, "seed": args.seed, **counts, "examples": wrong[:5]}), flush=True)


if __name__ == "__main__":
    main()
