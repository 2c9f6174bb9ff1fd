"""Supervised training on one process: solutions that slip under plain prompts, right ones where a solution is shown."""

import argparse
import random
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_recipe.method.chat import fill
from srpo_recipe.settings.schema import TEACHER_TEMPLATE
from srpo_recipe.starter import picks, sums
from srpo_recipe.starter.tiny.network import chat

# Modules with the same functions: problems, prompts, right solutions and those that slip, and the verifier.
TASKS: dict[str, Any] = {"sums": sums, "picks": picks}


def example(tokenizer, rng: random.Random, shown: bool, slip: float, task: Any = sums) -> tuple[list[int], list[int]]:
    """Token ids (prompt, response with its end). `shown`: the prompt carries a correct solution, another one than the target.

    task: one of TASKS.
    """
    terms = task.draw_terms(rng, "train")
    turn = task.prompt_text(terms)
    if shown:
        turn = fill(TEACHER_TEMPLATE, prompt=turn, demonstration=task.correct_solution(terms, rng))
        response = task.correct_solution(terms, rng)
    else:
        response = task.slipping_solution(terms, rng, slip)
    return chat(tokenizer, turn), tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id]


def collate(pairs: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, L] and labels [B, L], -100 wherever the token is not the response's."""
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), width), pad)
    labels = torch.full((len(pairs), width), -100)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids, labels


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up over 50 steps, then linear down to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / 50)
    return args.lr * warm * max(0.05, 1.0 - step / args.steps)


def warm_start(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Next-token training on the responses; the two kinds of examples run apart (less padding), in one update."""
    rng, task = random.Random(args.seed), TASKS[args.task]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    shown = round(args.shown_share * args.batch)
    started = time.monotonic()
    model.train()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        losses = []
        for is_shown, count in ((False, args.batch - shown), (True, shown)):
            pairs = [example(tokenizer, rng, is_shown, args.slip, task) for _ in range(count)]
            ids, labels = collate(pairs, tokenizer.pad_token_id)
            # Right padding under a causal mask needs no attention mask: no response token sees a pad.
            loss = model(input_ids=ids, labels=labels).loss
            (loss * count / args.batch).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - started) / (step + 1) * (args.steps - step - 1)
            print(
                f"step {step + 1}/{args.steps}  loss plain {losses[0]:.3f}  shown {losses[1]:.3f}  left {left:.0f} s",
                flush=True,
            )
    model.eval()
