"""The planner's arithmetic against real FSDP2 ranks on the CPU: bytes of each item, predicted and measured.

    python benchmarks/memory.py [--models small large] [--ranks 1 2] [--checkpointing 0 1]

Each case starts `ranks` processes (gloo, fp32) with the training engine and its EMA teacher on a random Qwen3, and runs two
optimiser steps of two micro-batches, the self-teacher's pass before them, as training does. Rank 0 prints a JSON object for each
item. Weights, teacher, gradients and optimiser are sums over the rank's own tensors; the peaks of the passes are the growth of
the process's resident memory, read from the kernel (VmHWM), with glibc told to give freed blocks back at once.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
ROWS, PROMPT, RESPONSE, HINT = 8, 64, 192, 64  # of a rank; two micro-batches of ROWS / 2
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
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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


# ------------------------------------------------------------------------------------------------------- inside a rank


class Growth:
    """Bytes by which the process's resident memory grew at most while the block ran, and how much of it stayed."""

    def __enter__(self) -> "Growth":
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present size
        self.before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.peak, self.after = _status("VmHWM") - self.before, _status("VmRSS") - self.before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def local_bytes(tensors) -> int:
    """Bytes of this rank's shards."""
    found = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in found)


def rows_of(generator, hint: int, vocabulary: int):
    """ROWS rollouts; one in each micro-batch is a token shorter, so the batch is padded as in training."""
    import torch

    for row in range(ROWS):
        prompt, response = PROMPT + hint, RESPONSE - (row % (ROWS // 2) == 0)
        ids = torch.randint(4, vocabulary, (prompt + response,), generator=generator)
        yield {
            "prompts": ids[:prompt],
            "responses": ids[prompt:],
            "input_ids": ids,
            "position_ids": torch.arange(len(ids)),
            "response_mask": torch.ones(response, dtype=torch.long),
            "loss_mask": torch.ones(response, dtype=torch.long),
            "advantages": torch.randn(1, generator=generator).expand(response).clone(),
            "rollout_log_probs": torch.full((response,), -9.0),
        }


def batch_of(rows: list[dict], stage: str):
    """verl's no-padding batch of the rows, all on the distillation route, as the trainer sends it for one step a batch."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    from srpo_recipe.training import worker

    fields = {key: torch.nested.as_nested_tensor([row[key] for row in rows], layout=torch.jagged) for key in rows[0]}
    fields |= {worker.POLICY: torch.zeros(ROWS), worker.DISTILL: torch.ones(ROWS)}
    fields[worker.TEACHER_ROW] = torch.arange(ROWS)
    data = TensorDict(fields, batch_size=ROWS)
    tu.assign_non_tensor(
        data, srpo_pass=stage, temperature=1.0, global_batch_size=ROWS, micro_batch_size_per_gpu=ROWS // 2,
        use_dynamic_bsz=False, calculate_entropy=False, use_remove_padding=False, importance_cap=2.0,
    )  # fmt: skip
    return data


class Rank:
    """The engines of one rank, as SRPOWorker joins them."""

    def __init__(self, folder: Path, checkpointing: bool, ranks: int):
        from omegaconf import open_dict
        from verl.utils.config import omega_conf_to_dataclass

        from srpo_recipe.settings.compose import compose_config
        from srpo_recipe.settings.read import read

        self.overrides = [
            "hardware=cpu", f"actor_rollout_ref.model.path={folder}", f"trainer.n_gpus_per_node={ranks}",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}", "srpo.top_k=100",
            f"data.train_batch_size={ranks}", f"actor_rollout_ref.rollout.n={ROWS}",
            f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}",
            f"srpo.teacher.max_prompt_tokens={PROMPT + HINT}",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={ROWS // 2 * (PROMPT + RESPONSE)}",
            f"actor_rollout_ref.ref.log_prob_max_token_len_per_gpu={ROWS // 2 * (PROMPT + HINT + RESPONSE)}",
        ]  # fmt: skip
        self.config = compose_config(self.overrides)
        model, self.actor_config = self.config.actor_rollout_ref.model, None
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = 10
        self.model_config = omega_conf_to_dataclass(model)
        self.actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.student = self.engine(self.actor_config.engine)
        self.teacher = self.engine(replace(self.actor_config.engine, forward_only=True))
        self.student.srpo = self.teacher.srpo = read(self.config)
        self.student.teacher = self.teacher

    def engine(self, engine_config):
        from verl.workers.engine.base import EngineRegistry

        from srpo_recipe.training import worker

        engine = EngineRegistry.new(
            model_type=worker.MODEL_TYPE, backend=engine_config.strategy, model_config=deepcopy(self.model_config),
            engine_config=engine_config, optimizer_config=self.actor_config.optim, checkpoint_config=self.actor_config.checkpoint,
        )  # fmt: skip
        engine.initialize()
        return engine

    def step(self, generator) -> dict[str, int]:
        """One step; bytes by item."""
        from srpo_recipe.training.worker import TEACHER_ENTROPY, routed_ppo_loss

        vocabulary = self.model_config.hf_config.vocab_size
        with Growth() as scoring, self.teacher.eval_mode():
            scored = batch_of(list(rows_of(generator, HINT, vocabulary)), "teacher")
            found = self.teacher.infer_batch(scored, loss_function=None)["model_output"]
        student, data = self.student, batch_of(list(rows_of(generator, 0, vocabulary)), "update")
        data[TEACHER_ENTROPY] = found[TEACHER_ENTROPY]
        loss = partial(routed_ppo_loss, self.actor_config, student.srpo)
        with student.train_mode():
            student.optimizer_zero_grad()
            with Growth() as update:
                student.forward_backward_batch(data, loss)
            gradients = local_bytes(p.grad for p in student.module.parameters())
            with Growth() as optimizer:
                student.optimizer_step()
            held = local_bytes(
                value for state in student.optimizer.state.values() for name, value in state.items() if "exp" in name
            )
        self.teacher.kept.clear()
        return {
            "weights": local_bytes(student.module.parameters()),
            "teacher": local_bytes(self.teacher.module.parameters()),
            "gradients": gradients,
            "optimiser": held,
            "scoring pass": scoring.peak,
            "update pass": update.peak - gradients,
            "optimiser step": optimizer.peak,
        }


def rank_main(folder: Path, name: str, checkpointing: bool) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = Rank(folder, checkpointing, dist.get_world_size())
    generator = torch.Generator().manual_seed(dist.get_rank())
    measured = [rank.step(generator) for _ in range(2)][1]  # the first step makes the optimiser's moments
    if dist.get_rank() == 0:
        predicted = predict(rank.config)
        for item, value in measured.items():
            row = {"model": name, "ranks": dist.get_world_size(), "checkpointing": checkpointing, "item": item}
            row |= {"predicted_mb": round(predicted[item] / 2**20, 1), "measured_mb": round(value / 2**20, 1)}
            print(json.dumps({**row, "ratio": round(predicted[item] / value, 3) if value else None}), flush=True)
    dist.destroy_process_group()


def predict(config) -> dict[str, float]:
    """The same items from the planner: a pass's growth is its phase less what was there before."""
    from srpo_recipe.plan import memory
    from srpo_recipe.plan.architecture import describe_model
    from srpo_recipe.plan.setup import from_config

    arch, setup = describe_model(config.actor_rollout_ref.model.path), from_config(config)
    held = ("weights", "teacher", "gradients", "optimiser")
    passing = {
        name: sum(value for item, value in phase(arch, setup).items() if item not in held)
        for name, phase in memory.PHASES.items()
    }
    kept = memory.states(arch, setup)
    loss, layer = (passing[name] - kept for name in ("update: loss", "update: layers"))
    update = memory.loss_phase(arch, setup)
    return {
        **{item: update[item] for item in held},
        "scoring pass": passing["scoring"],
        "update pass": max(loss, layer),
        "optimiser step": memory.optimizer_phase(arch, setup)["optimiser"] - update["optimiser"],
    }


# --------------------------------------------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checkpointing", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument(
        "--tied", type=int, nargs="+", default=[0], choices=[0, 1], help="the output layer is the embedding"
    )
    parser.add_argument("--rank-of", nargs=3, metavar=("FOLDER", "MODEL", "CHECKPOINTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        return rank_main(Path(args.rank_of[0]), args.rank_of[1], args.rank_of[2] == "1")
    from environment import environment

    print(json.dumps(environment("verl")), flush=True)
    variables = {
        **os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1",
    }  # fmt: skip
    for tied in args.tied:
        for name in args.models:
            with tempfile.TemporaryDirectory() as folder:
                write_model(Path(folder), name, bool(tied))
                for ranks in args.ranks:
                    for checkpointing in args.checkpointing:
                        command = [
                            sys.executable,
                            "-m",
                            "torch.distributed.run",
                            "--standalone",
                            "--nproc-per-node",
                            str(ranks),
                        ]
                        command += [__file__, "--rank-of", folder, f"{name}{' tied' * tied}", str(checkpointing)]
                        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
                        if done.returncode:
                            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
                        print(
                            "".join(f"{line}\n" for line in done.stdout.splitlines() if line.startswith('{"model"')),
                            end="",
                        )
                        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
