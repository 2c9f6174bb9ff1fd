"""Trains the model, measures it, and writes an ordinary Hugging Face folder with its provenance."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from srpo_recipe.machine import installed_version
from srpo_recipe.records.files import sha256, whole_folder
from srpo_recipe.starter.tiny.acceptance import measure, unmet
from srpo_recipe.starter.tiny.network import build_model, build_tokenizer
from srpo_recipe.starter.tiny.warm_start import warm_start

# What a build leaves in its folder, and a later one may replace.
FILES = frozenset(
    "chat_template.jinja config.json generation_config.json model.safetensors provenance.json tokenizer.json "
    "tokenizer_config.json".split()
)


def provenance(model, args: argparse.Namespace, acceptance: dict[str, float], seconds: float) -> dict[str, Any]:
    """How the model came about. args: of the command; acceptance: what was measured; seconds: what the build took."""
    recipe = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key != "out"
    }
    recipe = {key: value for key, value in recipe.items() if value is not None}
    task = recipe.get("task", "sums")
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in recipe.items())
    versions = {package: installed_version(package) for package in ("torch", "transformers", "tokenizers")}
    return {
        "command": f"python -m srpo_recipe.starter.tiny --out srpo_recipe/assets/{args.out.name} {flags}",
        "recipe": recipe,
        "corpus": {
            "task": f"srpo_recipe/starter/{task}.py, split train",
            "plain": f"{1 - args.shown_share:.0%}: the prompt alone; every step of the solution slips with "
            f"probability {args.slip}",
            "shown": f"{args.shown_share:.0%}: the self-teacher's prompt with a correct solution; the target is a "
            "correct solution of its own",
            "examples": args.steps * args.batch,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "build_seconds": round(seconds),
        "versions": {"python": platform.python_version(), **versions},
        "acceptance": acceptance,
    }


def save(model, tokenizer, out: Path, made: dict[str, Any]) -> None:
    """Write an ordinary Hugging Face folder, which appears whole or not at all. made: its provenance.

    Raises FileExistsError when `out` holds anything that no earlier build wrote.
    """
    with whole_folder(out, may_replace=FILES) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        digest = {"model.safetensors": sha256(partial / "model.safetensors")}
        (partial / "provenance.json").write_text(json.dumps({**made, "sha256": digest}, indent=2) + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)


def build(args: argparse.Namespace) -> list[str]:
    """Build what the command line asks for; returns the conditions that the model does not meet.

    With any of them the folder is called <out>.rejected. args: those of the command (__main__.parse).
    """
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args)
    if args.start:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    warm_start(model, tokenizer, args)
    print("measuring", flush=True)
    acceptance = measure(model, tokenizer, seed=args.seed, name=args.task)
    print(json.dumps(acceptance, indent=2), flush=True)
    failures = unmet(acceptance, args.task)
    out = args.out.with_name(args.out.name + ".rejected") if failures else args.out
    save(model, tokenizer, out, provenance(model, args, acceptance, time.monotonic() - started))
    print(f"wrote {out}")
    return failures
