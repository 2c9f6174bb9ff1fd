"""What the quickstart needs of its model, measured on held-out problems, and the bounds within which it must lie."""

import random

import torch

from srpo_recipe.method.chat import fill
from srpo_recipe.settings.schema import TEACHER_TEMPLATE
from srpo_recipe.starter.tiny.network import MAX_RESPONSE, chat
from srpo_recipe.starter.tiny.warm_start import TASKS, collate


@torch.no_grad()
def sample(model, tokenizer, turns: list[str], temperature: float, top_p: float = 1.0, batch: int = 256) -> list[str]:
    """One response per user turn."""
    texts = []
    for first in range(0, len(turns), batch):
        prompts = [chat(tokenizer, turn) for turn in turns[first : first + batch]]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        out = model.generate(
            **inputs, do_sample=True, temperature=temperature, top_k=0, top_p=top_p, max_new_tokens=MAX_RESPONSE
        )
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@torch.no_grad()
def mean_entropy(model, tokenizer, turns: list[str], responses: list[str]) -> float:
    """Mean full-vocabulary entropy in nats over all response tokens, each row under its own user turn."""
    total = count = 0.0
    for first in range(0, len(turns), 128):
        pairs = [
            (chat(tokenizer, turn), tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id])
            for turn, text in zip(turns[first : first + 128], responses[first : first + 128], strict=True)
        ]
        ids, labels = collate(pairs, tokenizer.pad_token_id)
        log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        mask = labels[:, 1:] != -100
        total += entropy[mask].sum().item()
        count += mask.sum().item()
    return total / max(1.0, count)


def measure(model, tokenizer, seed: int, problems: int = 256, group: int = 8, name: str = "sums") -> dict[str, float]:
    """What the quickstart needs of its model, on held-out problems: how often it is right, alone and when shown.

    name: of the task, in warm_start.TASKS.
    """
    task = TASKS[name]
    torch.manual_seed(seed)
    rng = random.Random(seed)
    held_out = task.generate_problems("test", problems, seed)

    def accuracy(turns: list[str], of: list[tuple[int, ...]], temperature: float, top_p: float = 1.0) -> float:
        answers = sample(model, tokenizer, turns, temperature, top_p)
        right = sum(task.verify(text, task.ground_truth(terms)) for text, terms in zip(answers, of, strict=True))
        return right / max(1, len(of))

    of = held_out * 4
    plain = [task.prompt_text(terms) for terms in of]

    rollouts_of = [terms for terms in held_out for _ in range(group)]
    texts = sample(model, tokenizer, [task.prompt_text(terms) for terms in rollouts_of], 1.0)
    rewards = [task.verify(text, task.ground_truth(t)) for text, t in zip(texts, rollouts_of, strict=True)]
    teacher_turns, failed, shown_of = [], [], []
    for row, terms in enumerate(rollouts_of):
        start = row - row % group
        siblings = [other for other in range(start, start + group) if rewards[other] == 1.0 and other != row]
        if rewards[row] == 0.0 and siblings:
            demonstration = texts[rng.choice(siblings)]
            teacher_turns.append(fill(TEACHER_TEMPLATE, prompt=task.prompt_text(terms), demonstration=demonstration))
            failed.append(texts[row])
            shown_of.append(terms)
    all_wrong = sum(not any(rewards[s : s + group]) for s in range(0, len(rewards), group)) / problems
    return {
        "held_out_problems": problems,
        "accuracy_temperature_0.6": accuracy(plain, of, 0.6),
        "accuracy_temperature_0.6_top_p_0.95": accuracy(plain, of, 0.6, 0.95),
        "accuracy_temperature_1.0": sum(rewards) / len(rewards),
        "accuracy_shown_a_correct_sibling_temperature_1.0": accuracy(teacher_turns, shown_of, 1.0),
        "failed_with_correct_sibling_share_of_rollouts": len(failed) / len(rewards),
        "all_wrong_groups_share": all_wrong,
        "teacher_entropy_nats_on_those_failed": mean_entropy(model, tokenizer, teacher_turns, failed),
        "response_tokens_mean": sum(map(len, texts)) / len(texts) + 1,
        "response_tokens_max": max(map(len, texts)) + 1,
        "prompt_tokens_max": max(len(chat(tokenizer, turn)) for turn in plain),
        "teacher_prompt_tokens_max": max((len(chat(tokenizer, turn)) for turn in teacher_turns), default=0),
    }


# What the quickstart leans on: (name, least, most). Head-room to gain, a teacher that knows, rows on both routes.
ACCEPTANCE = (
    ("accuracy_temperature_0.6", 0.35, 0.65),
    ("accuracy_shown_a_correct_sibling_temperature_1.0", 0.95, 1.0),
    ("failed_with_correct_sibling_share_of_rollouts", 0.30, 0.65),
    ("teacher_entropy_nats_on_those_failed", 0.05, 1.0),
)
# The same for a task in which the teacher has to be unsure.
ACCEPTANCE_PICKS = (
    ("accuracy_temperature_0.6", 0.20, 0.65),
    ("accuracy_shown_a_correct_sibling_temperature_1.0", 0.85, 1.0),
    ("failed_with_correct_sibling_share_of_rollouts", 0.30, 0.75),
    ("teacher_entropy_nats_on_those_failed", 0.30, 1.0),
)


def unmet(acceptance: dict[str, float], task: str = "sums") -> list[str]:
    """The conditions of the task's table that do not hold, in words."""
    return [
        f"{name} is {acceptance[name]:.3f}, wanted {least} to {most}"
        for name, least, most in {"sums": ACCEPTANCE, "picks": ACCEPTANCE_PICKS}[task]
        if not least <= acceptance[name] <= most
    ]
