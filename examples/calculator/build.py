"""Build what this example trains: questions of two numbers, and a tiny model that knows how to call a tool and mostly does not.

    .venv/bin/python examples/calculator/build.py --out FOLDER [--steps 1200] [--threads 1]

FOLDER/model: a Qwen3 of half a million parameters with a tokenizer of printable ASCII, warm-started by supervised training on one
process: under a plain prompt it guesses the sum seven times of ten, and calls the calculator otherwise; under a prompt that
shows a rollout with a call, it calls. FOLDER/train.parquet and test.parquet: verl's rows.
"""

import argparse
import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from srpo_recipe.method.chat import fill
from srpo_recipe.settings.schema import TEACHER_TEMPLATE
from srpo_recipe.starter.tiny.network import EOS, build_model, build_tokenizer
from srpo_recipe.starter.tiny.warm_start import collate

GUESSES = 0.7
SIZES = {"train": 512, "test": 64}
# Names of the tools before the chat, where there are any; the rest is ChatML.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\ntools:' }}{% for tool in tools %}{{ ' ' + tool.function.name }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def draw(rng: random.Random) -> tuple[int, int]:
    """The numbers of a question."""
    return rng.randint(10, 99), rng.randint(10, 99)


def call(a: int, b: int) -> str:
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


def turns(rng: random.Random, a: int, b: int, calls: bool) -> list[tuple[str, bool]]:
    """The pieces of a response, and whether the model writes them."""
    if not calls:
        return [(f"{max(0, a + b + rng.choice([-10, -1, 0, 1, 10]))}{EOS}", True)]
    tool = f"\n<|im_start|>tool\n{a + b}{EOS}\n<|im_start|>assistant\n"
    return [(call(a, b) + EOS, True), (tool, False), (f"{a + b}{EOS}", True)]


def example(tokenizer, rng: random.Random, shown: bool) -> tuple[list[int], list[int], list[int]]:
    """(prompt, response, labels of the response): -100 where the tool speaks. shown: a solution stands in the prompt."""
    a, b = draw(rng)
    question = f"{a}+{b}=?"
    if shown:
        solution = "".join(text for text, _ in turns(rng, a, b, True)).removesuffix(EOS)
        question = fill(TEACHER_TEMPLATE, prompt=question, demonstration=solution)
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [{"role": "user", "content": "MARK"}]
    head, tail = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False).split(
        "MARK"
    )

    def ids(text: str, plain: bool = False) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]

    response, labels = [], []
    for text, own in turns(rng, a, b, shown or rng.random() > GUESSES):
        piece = ids(text)
        response += piece
        labels += piece if own else [-100] * len(piece)
    return [*ids(head), *ids(question, plain=True), *ids(tail)], response, labels


def train(model, tokenizer, args: argparse.Namespace) -> None:
    rng, optimizer = random.Random(args.seed), torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98))
    started = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50) * max(0.05, 1 - step / args.steps)
        losses = []
        for shown, count in ((False, args.batch), (True, args.batch // 8)):  # apart: less padding
            part = [example(tokenizer, rng, shown) for _ in range(count)]
            given, labels = collate([(prompt, response) for prompt, response, _ in part], tokenizer.pad_token_id)
            for place, (prompt, response, wanted) in enumerate(part):
                labels[place, len(prompt) : len(prompt) + len(response)] = torch.tensor(wanted)
            loss = model(input_ids=given, labels=labels).loss / 2
            loss.backward()
            losses.append(2 * loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{args.steps}  loss {losses[0]:.3f} {losses[1]:.3f}  {time.time() - started:.0f} s",
                flush=True,
            )


def write_rows(folder: Path, seed: int) -> None:
    rng, seen = random.Random(seed + 1), set()
    for split, size in SIZES.items():
        rows = []
        while len(rows) < size:
            a, b = draw(rng)
            if (a, b) in seen:
                continue
            seen.add((a, b))
            rows.append(
                {
                    "data_source": "calculator",
                    "prompt": [{"role": "user", "content": f"{a}+{b}=?"}],
                    "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                    "extra_info": {"index": len(seen), "split": split},
                }
            )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = build_model(tokenizer, argparse.Namespace(hidden=128, layers=3))
    train(model, tokenizer, args)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    write_rows(args.out, args.seed)
    print(json.dumps({"model": str(args.out / "model"), "parameters": sum(p.numel() for p in model.parameters())}))


if __name__ == "__main__":
    main()
