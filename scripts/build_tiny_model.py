"""Build the quickstart's model from nothing: a tiny Qwen3 that can add, under bad habits.

A warm start by supervised training, on one process and one thread, deterministic given --seed. The corpus has two kinds
of examples of the additions task (srpo_recipe/starter/sums.py):

- plain prompts, whose solutions slip at every step with probability --slip. The skill is there, under bad habits, as in
  a pretrained model. (Trained on clean solutions but for too short, a model fails for lack of skill, and reinforcement
  learning cannot add it.)
- prompts in the self-teacher's format, which show a correct solution; the target is a correct one in an order of its
  own.

So the model knows how to be right, and does it when it is shown that somebody was. Reinforcement learning has to make
that its habit.

    python scripts/build_tiny_model.py --out srpo_recipe/assets/tiny_qwen3
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from srpo_recipe.settings.schema import TEACHER_TEMPLATE
from srpo_recipe.starter import sums

PAD, EOS, BOT, UNK = "<|pad|>", "<|im_end|>", "<|im_start|>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAX_RESPONSE = 48


# ---- tokenizer and network ----


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline, four control tokens, nothing else."""
    characters = ["\n"] + [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, BOT, UNK] + characters)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[BOT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Qwen3ForCausalLM:
    """A Qwen3 whose vocabulary is exactly the tokenizer's, so that no logit stands for nothing."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 64,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.update(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=MAX_RESPONSE, bos_token_id=None
    )
    return model


# ---- corpus ----


def chat(tokenizer: PreTrainedTokenizerFast, user_turn: str) -> list[int]:
    """Token ids of the prompt up to and with the assistant's header."""
    messages = [{"role": "user", "content": user_turn}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def example(tokenizer, rng: random.Random, shown: bool, slip: float) -> tuple[list[int], list[int]]:
    """Token ids (prompt, response with its end). `shown`: the prompt carries a correct solution, in another order."""
    terms = sums.draw_terms(rng, "train")
    turn = sums.prompt_text(terms)
    if shown:
        turn = TEACHER_TEMPLATE.format(prompt=turn, demonstration=sums.correct_solution(terms, rng))
        response = sums.correct_solution(terms, rng)
    else:
        response = sums.slipping_solution(terms, rng, slip)
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


# ---- warm start ----


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up over 50 steps, then linear down to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / 50)
    return args.lr * warm * max(0.05, 1.0 - step / args.steps)


def warm_start(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Next-token training on the responses; the two kinds of examples run apart (less padding), in one update."""
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    shown = round(args.shown_share * args.batch)
    started = time.time()
    model.train()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        losses = []
        for is_shown, count in ((False, args.batch - shown), (True, shown)):
            pairs = [example(tokenizer, rng, is_shown, args.slip) for _ in range(count)]
            ids, labels = collate(pairs, tokenizer.pad_token_id)
            # Right padding under a causal mask needs no attention mask: no response token sees a pad.
            loss = model(input_ids=ids, labels=labels).loss
            (loss * count / args.batch).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            left = (time.time() - started) / (step + 1) * (args.steps - step - 1)
            print(
                f"step {step + 1}/{args.steps}  loss plain {losses[0]:.3f}  shown {losses[1]:.3f}  left {left:.0f} s",
                flush=True,
            )
    model.eval()


# ---- acceptance ----


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


def measure(model, tokenizer, seed: int, problems: int = 256, group: int = 8) -> dict[str, float]:
    """What the quickstart needs of its model, on held-out problems: how often it is right, alone and when shown."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    held_out = sums.generate_problems("test", problems, seed)

    def accuracy(turns: list[str], of: list[sums.Terms], temperature: float, top_p: float = 1.0) -> float:
        answers = sample(model, tokenizer, turns, temperature, top_p)
        right = sum(sums.verify(text, sums.ground_truth(terms)) for text, terms in zip(answers, of, strict=True))
        return right / max(1, len(of))

    of = held_out * 4
    plain = [sums.prompt_text(terms) for terms in of]

    rollouts_of = [terms for terms in held_out for _ in range(group)]
    texts = sample(model, tokenizer, [sums.prompt_text(terms) for terms in rollouts_of], 1.0)
    rewards = [sums.verify(text, sums.ground_truth(t)) for text, t in zip(texts, rollouts_of, strict=True)]
    teacher_turns, failed, shown_of = [], [], []
    for row, terms in enumerate(rollouts_of):
        start = row - row % group
        siblings = [other for other in range(start, start + group) if rewards[other] == 1.0 and other != row]
        if rewards[row] == 0.0 and siblings:
            demonstration = texts[rng.choice(siblings)]
            teacher_turns.append(TEACHER_TEMPLATE.format(prompt=sums.prompt_text(terms), demonstration=demonstration))
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


def unmet(acceptance: dict[str, float]) -> list[str]:
    """The conditions of ACCEPTANCE that do not hold, in words."""
    return [
        f"{name} is {acceptance[name]:.3f}, wanted {least} to {most}"
        for name, least, most in ACCEPTANCE
        if not least <= acceptance[name] <= most
    ]


# ---- the folder ----


def save(model, tokenizer, args: argparse.Namespace, acceptance: dict, seconds: float) -> None:
    """Write an ordinary Hugging Face folder with its provenance; the folder appears whole or not at all."""
    partial = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        recipe = {key: value for key, value in vars(args).items() if key != "out"}
        flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in recipe.items())
        provenance = {
            "command": f"python scripts/build_tiny_model.py --out srpo_recipe/assets/{args.out.name} {flags}",
            "recipe": recipe,
            "corpus": {
                "task": "srpo_recipe/starter/sums.py, split train",
                "plain": f"{1 - args.shown_share:.0%}: the prompt alone; every step of the solution slips with "
                f"probability {args.slip}",
                "shown": f"{args.shown_share:.0%}: the self-teacher's prompt with a correct solution; the target is a "
                "correct solution in an order of its own",
                "examples": args.steps * args.batch,
            },
            "parameters": sum(p.numel() for p in model.parameters()),
            "build_seconds": round(seconds),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "sha256": {"model.safetensors": hashlib.sha256((partial / "model.safetensors").read_bytes()).hexdigest()},
            "acceptance": acceptance,
        }
        (partial / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)
        if args.out.exists():
            shutil.rmtree(args.out)
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an old one is replaced at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128, help="width, a multiple of 64 (heads of 32)")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--slip", type=float, default=0.35, help="probability that a step of a plain solution slips")
    parser.add_argument("--shown-share", type=float, default=0.35, help="share of examples in the teacher's format")
    parser.add_argument("--threads", type=int, default=1, help="more than one may change the result's last digits")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.time()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    warm_start(model, tokenizer, args)
    print("measuring", flush=True)
    acceptance = measure(model, tokenizer, seed=args.seed)
    print(json.dumps(acceptance, indent=2), flush=True)
    failures = unmet(acceptance)
    if failures:
        args.out = args.out.with_name(args.out.name + ".rejected")
    save(model, tokenizer, args, acceptance, time.time() - started)
    print(f"wrote {args.out}")
    if failures:
        raise SystemExit("not accepted: " + "; ".join(failures))


if __name__ == "__main__":
    main()
