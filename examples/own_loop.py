"""SRPO in one file: torch, transformers and `srpo_recipe.method`, without verl, Ray or vLLM.

    python examples/own_loop.py                  # trains the embedded model on additions, on the CPU

Each step is the paper's figure, in its order: rollout -> verify -> route -> (GRPO | self-teacher -> DW-SDPO) -> one loss -> EMA.
Shapes: B rollouts, T tokens of the longest response, N of all, M of those on the distillation route, K top ids, V words.
"""

import argparse
import copy
import random
import re
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import srpo_recipe
from srpo_recipe.method.decision import Decision, Rollouts, Routing, decide
from srpo_recipe.method.dw_sdpo import confidence, divergence
from srpo_recipe.method.ema import ema_distance, ema_update
from srpo_recipe.method.grpo import clipped_policy_loss, group_advantages
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.loss import Totals, count_totals, routed_loss
from srpo_recipe.method.self_teacher import StudentChat, TeacherPromptBuilder
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import logits_at, teacher_statistics

MODEL = Path(srpo_recipe.__file__).parent / "assets" / "tiny_qwen3"
TEMPLATE = "{prompt}\nCorrect solution:\n\n{demonstration}\n\nCorrectly solve the original question."
ALPHA, BETA, TOP_K, EMA_RATE, CLIP = 0.5, 1.0, 20, 0.05, (0.2, 0.28)
LEARNING_RATE, WARM_UP, MOST_TOKENS = 3e-4, 10, 64


def draw_terms(generator: random.Random, held_out: bool) -> tuple[int, ...]:
    """A problem, 17+25+38+39=?. Every eighth set of terms is held out, in any order."""
    while True:
        terms = tuple(generator.randint(10, 49) for _ in range(4))
        if (sum(value * 50**place for place, value in enumerate(sorted(terms))) % 8 == 0) == held_out:
            return terms


def chat(terms: tuple[int, ...]) -> StudentChat:
    return StudentChat([{"role": "user", "content": "+".join(map(str, terms)) + "=?"}])


def verify(response: str, terms: tuple[int, ...]) -> float:
    """1 for a response that ends in the right answer, behind its only #."""
    found = re.fullmatch(r"[^#]*#([0-9]+)", response.strip())
    return float(found is not None and found[1] == str(sum(terms)))


def sample(model, tokenizer, chats: list[StudentChat], copies: int, **options) -> tuple[list, list]:
    """Token ids of (prompts, responses), so many copies of each chat."""
    ids = [
        tokenizer.apply_chat_template(
            one.messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        for one in chats
        for _ in range(copies)
    ]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    made = model.generate(**batch, do_sample=True, max_new_tokens=MOST_TOKENS, **options)[
        :, batch["input_ids"].shape[1] :
    ]
    ends = ((made == tokenizer.eos_token_id).int().argmax(-1) + 1).tolist()
    whole = (made == tokenizer.eos_token_id).any(-1).tolist()
    return ids, [row[:end] if stopped else row for row, end, stopped in zip(made, ends, whole, strict=True)]


def response_logits(model, prompts: list[list[int]], responses: list[torch.Tensor]) -> torch.Tensor:
    """The logits that predict the response tokens, row after row: [N, V]. Padding comes last, where nothing looks."""
    rows = [torch.cat([torch.tensor(prompt), response]) for prompt, response in zip(prompts, responses, strict=True)]
    logits = model(input_ids=pad_sequence(rows, batch_first=True)).logits
    return torch.cat(
        [one[len(prompt) - 1 : len(row) - 1] for one, prompt, row in zip(logits, prompts, rows, strict=True)]
    )


def padded(values_N: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """A value for each response token as [B, T], 0 after a response's end."""
    return pad_sequence(list(values_N.split(lengths)), batch_first=True)


def roll_out(student, tokenizer, problems: list, copies: int) -> tuple[list[list[int]], Rollouts]:
    """rollout -> verify: so many responses to each problem, each with its reward. Returns the prompts' ids and the rollouts."""
    chats = [chat(terms) for terms in problems for _ in range(copies)]
    prompts, responses = sample(student, tokenizer, chats[::copies], copies, temperature=1.0, top_k=0, top_p=1.0)
    group_B = torch.arange(len(problems)).repeat_interleave(copies)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    reward_B = torch.tensor([verify(text, problems[group]) for text, group in zip(texts, group_B, strict=True)])
    session_B, real_B = torch.arange(len(chats)) % copies, torch.ones(len(chats), dtype=torch.bool)
    return prompts, Rollouts(group_B, session_B, group_B, reward_B, real_B, responses, chats, [None] * len(chats))


def objective(student, teacher, prompts: list[list[int]], decision: Decision) -> tuple[torch.Tensor, dict]:
    """(GRPO | self-teacher -> DW-SDPO) -> one loss, and what its step line shows."""
    rollouts, route, routed = decision.rollouts, decision.route, list(decision.prompts)
    responses, lengths, ends = rollouts.responses, rollouts.length_B.tolist(), rollouts.length_B.cumsum(0).tolist()
    spans, distilled = list(zip([0, *ends[:-1]], ends, strict=True)), (route.distill_B > 0).tolist()
    logits_NV = response_logits(student, prompts, responses)
    ids_MK = top_ids(logits_NV, TOP_K, [spans[row] for row in routed])
    log_prob_N, log_mass_MB = student_statistics(logits_NV, torch.cat(responses), ids_MK, spans, distilled)
    log_prob_BT, mask_BT = padded(log_prob_N, lengths), padded(torch.ones(sum(lengths)), lengths).bool()
    # with one optimiser step a batch the old policy is the student itself
    advantage_B1 = group_advantages(rollouts.reward_B, rollouts.group_B).unsqueeze(-1)
    policy_loss_BT, _, _ = clipped_policy_loss(log_prob_BT, log_prob_BT.detach(), advantage_B1, *CLIP)
    entropy_BT, divergence_BT = torch.zeros_like(log_prob_BT), torch.zeros_like(log_prob_BT)
    on_route_BT = mask_BT & (route.distill_B > 0).unsqueeze(-1)
    if routed:
        with torch.no_grad():
            enriched = [decision.prompts[row].ids for row in routed]
            teacher_MV = response_logits(teacher, enriched, [responses[row] for row in routed])
            statistics = teacher_statistics(teacher_MV)
            teacher_MK = statistics.log_probs(logits_at(teacher_MV, ids_MK))
        entropy_BT = entropy_BT.masked_scatter(on_route_BT, statistics.entropy_N)
        divergence_BT = divergence_BT.masked_scatter(on_route_BT, divergence(log_mass_MB, teacher_MK, ALPHA))
    confidence_BT, ones_BT = (
        confidence(entropy_BT, BETA),
        torch.ones_like(log_prob_BT),
    )  # nothing else sampled: rho is 1
    totals = Totals.from_tensor(count_totals(mask_BT, route.policy_B, route.distill_B, confidence_BT))
    weights = (route.policy_B, route.distill_B, confidence_BT, ones_BT, totals)
    shown = {"weight": (confidence_BT / totals.mean_confidence)[on_route_BT], "entropy": entropy_BT[on_route_BT]}
    return sum(routed_loss(policy_loss_BT, divergence_BT, mask_BT, *weights)), shown


def train_step(student, teacher, optimizer, tokenizer, builder, problems, copies: int, step: int, seed: int) -> dict:
    """One step on these problems; returns what its line shows."""
    prompts, rollouts = roll_out(student, tokenizer, problems, copies)
    routing = Routing("srpo", 0.5, 0.9, "random", "off", "shorten", seed, context=None)
    decision = decide(rollouts, routing, builder, step)
    loss, shown = objective(student, teacher, prompts, decision)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min(1.0, step / WARM_UP)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    ema_update(teacher.parameters(), student.parameters(), EMA_RATE)
    difference, norm = ema_distance(teacher.parameters(), student.parameters())
    distill_B, length_B = decision.route.distill_B, rollouts.length_B.float()
    return shown | {
        "reward": rollouts.reward_B.mean(),
        "routed": distill_B.mean(),
        "teacher": decision.teacher_B.float().mean(),
        "grpo": length_B[distill_B == 0],
        "sdpo": length_B[distill_B > 0],
        "ema": (difference / norm).sqrt(),
    }


def step_line(step: int, steps: int, found: dict, seconds: float) -> str:
    """As a run of the recipe prints it."""
    left = int((steps - step) * seconds)
    weight, entropy = found["weight"], found["entropy"]
    shown = (
        (f"{weight.mean():.2f}", f"{weight.std(correction=0):.2f}", f"{entropy.mean():.3f}") if len(weight) else "---"
    )
    grpo, sdpo = (lengths.sum() / max(len(lengths), 1) for lengths in (found["grpo"], found["sdpo"]))
    return (
        f"step {step}/{steps} | reward {found['reward']:.3f} | routed {found['routed']:.0%} | teacher {found['teacher']:.0%} | "
        f"w {shown[0]}±{shown[1]} | H {shown[2]} | len grpo {grpo:.0f} sdpo {sdpo:.0f} | ema {found['ema']:.4f} | "
        f"{seconds:.1f} s | {left // 60}:{left % 60:02d} left"
    )


@torch.no_grad()
def accuracy(model, tokenizer, problems: list, samples: int = 4) -> float:
    """avg@4 on held-out problems at temperature 0.6."""
    _, responses = sample(
        model, tokenizer, [chat(terms) for terms in problems], samples, temperature=0.6, top_p=0.95, top_k=0
    )
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    return sum(verify(text, problems[row // samples]) for row, text in enumerate(texts)) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 40), ("prompts", 16), ("rollouts", 8), ("held-out", 128), ("seed", 42)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    started = time.time()
    torch.manual_seed(options.seed)
    generator = random.Random(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    student = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.01)
    builder = TeacherPromptBuilder(tokenizer, TEMPLATE, TEMPLATE, 256, {"enable_thinking": False})
    held_out = [draw_terms(generator, held_out=True) for _ in range(options.held_out)]
    before = accuracy(student, tokenizer, held_out)
    for step in range(1, options.steps + 1):
        began = time.time()
        problems = [draw_terms(generator, held_out=False) for _ in range(options.prompts)]
        found = train_step(
            student, teacher, optimizer, tokenizer, builder, problems, options.rollouts, step, options.seed
        )
        print(step_line(step, options.steps, found, time.time() - began), flush=True)
    after = accuracy(student, tokenizer, held_out)
    print(f"held-out avg@4: {before:.1%} before, {after:.1%} after, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
