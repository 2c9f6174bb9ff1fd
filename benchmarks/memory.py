"""The planner's arithmetic against real FSDP2 ranks on the CPU: bytes of each item, predicted and measured.

    python benchmarks/memory.py [--models small large] [--ranks 1 2] [--checkpointing 0 1]

Each case starts `ranks` processes (gloo, fp32) with the training engine and its EMA teacher on a random Qwen3, and runs two
optimiser steps of two micro-batches, the self-teacher's pass before them, as training does. Rank 0 prints a JSON object for each
item. Weights, teacher, gradients and optimiser are sums over the rank's own tensors; the peaks of the passes are the growth of
the process's resident memory, read from the kernel (VmHWM), with glibc told to give freed blocks back at once.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from environment import environment
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
MODELS = {
    "small": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
              "head_dim": 64, "intermediate_size": 768, "vocab_size": 16_384},
    "large": {"hidden_size": 640, "num_hidden_layers": 12, "num_attention_heads": 10, "num_key_value_heads": 2,
              "head_dim": 64, "intermediate_size": 1792, "vocab_size": 32_768},
    # where the logits are small a layer's backward pass is the peak
    "few-words": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
                  "head_dim": 64, "intermediate_size": 1536, "vocab_size": 1024},
}  # fmt: skip


def write_model(folder: Path, name: str, tied: bool) -> None:
    """A random Qwen3 with the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        **MODELS[name],
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ASSETS / file, folder)


def measure(folder: Path, name: str, ranks: int, checkpointing: int) -> list[str]:
    """The lines that rank 0 prints of one case. Ends the program with the error's text when a rank fails."""
    variables = {
        **os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(HERE / "rank.py"), str(folder), name, str(checkpointing)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return [line for line in done.stdout.splitlines() if line.startswith('{"model"')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checkpointing", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument(
        "--tied", type=int, nargs="+", default=[0], choices=[0, 1], help="the output layer is the embedding"
    )
    args = parser.parse_args()
    print(json.dumps(environment("verl")), flush=True)
    for tied, name in product(args.tied, args.models):
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), name, bool(tied))
            for ranks, checkpointing in product(args.ranks, args.checkpointing):
                for line in measure(Path(folder), f"{name}{' tied' * tied}", ranks, checkpointing):
                    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
