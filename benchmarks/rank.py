"""One rank of benchmarks/memory.py: `torchrun --nproc-per-node N benchmarks/rank.py FOLDER NAME CHECKPOINTING`.

The training engine and its EMA teacher on the model in FOLDER, as SRPOWorker joins them. Rank 0 prints a JSON object for each
item.
"""

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import open_dict
from process_memory import Growth
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.base import EngineRegistry

from srpo_recipe.gpu_check.memory import bytes_of, predict
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.read import read
from srpo_recipe.training import fields
from srpo_recipe.training.engine import MODEL_TYPE
from srpo_recipe.training.losses import update_loss
from srpo_recipe.training.passes import PASS

ROWS, PROMPT, RESPONSE, HINT = 8, 64, 192, 64  # of a rank; two micro-batches of ROWS / 2


def rows_of(generator: torch.Generator, hint: int, vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    """ROWS rollouts; one in each micro-batch is a token shorter, so the batch is padded as in training."""
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


def batch_of(rows: list[dict[str, torch.Tensor]], stage: str) -> TensorDict:
    """verl's no-padding batch of the rows, all on the distillation route. stage: of the engine, "teacher" or "update"."""
    columns = {key: fields.jagged([row[key] for row in rows]) for key in rows[0]}
    columns |= {fields.POLICY: torch.zeros(ROWS), fields.DISTILL: torch.ones(ROWS)}
    columns[fields.TEACHER_ROW] = torch.arange(ROWS)
    data = TensorDict(columns, batch_size=ROWS)
    tu.assign_non_tensor(
        data, temperature=1.0, global_batch_size=ROWS, micro_batch_size_per_gpu=ROWS // 2, use_dynamic_bsz=False,
        calculate_entropy=False, use_remove_padding=False, **{PASS: stage, fields.IMPORTANCE_CAP: 2.0},
    )  # fmt: skip
    return data


class Rank:
    """The engines of one rank, as SRPOWorker joins them."""

    def __init__(self, folder: Path, checkpointing: bool, ranks: int):
        self.config = compose_config([
            "hardware=cpu", f"actor_rollout_ref.model.path={folder}", f"trainer.n_gpus_per_node={ranks}",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}", "srpo.top_k=100",
            f"data.train_batch_size={ranks}", f"actor_rollout_ref.rollout.n={ROWS}",
            f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}",
            f"srpo.teacher.max_prompt_tokens={PROMPT + HINT}",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={ROWS // 2 * (PROMPT + RESPONSE)}",
            f"actor_rollout_ref.ref.log_prob_max_token_len_per_gpu={ROWS // 2 * (PROMPT + HINT + RESPONSE)}",
        ])  # fmt: skip
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = 10
        self.model_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.student = self.engine(self.actor_config.engine)
        self.teacher = self.engine(replace(self.actor_config.engine, forward_only=True))
        self.student.srpo = self.teacher.srpo = read(self.config)
        self.student.actor_config = self.actor_config
        self.student.teacher = self.teacher

    def engine(self, engine_config):
        engine = EngineRegistry.new(
            model_type=MODEL_TYPE, backend=engine_config.strategy, model_config=deepcopy(self.model_config),
            engine_config=engine_config, optimizer_config=self.actor_config.optim, checkpoint_config=self.actor_config.checkpoint,
        )  # fmt: skip
        engine.initialize()
        return engine

    def step(self, generator: torch.Generator) -> dict[str, int]:
        """One step; bytes by item."""
        student, teacher, vocabulary = self.student, self.teacher, self.model_config.hf_config.vocab_size
        scored, data = (
            batch_of(list(rows_of(generator, hint, vocabulary)), stage)
            for hint, stage in ((HINT, "teacher"), (0, "update"))
        )

        def score() -> None:
            with teacher.eval_mode():
                teacher.infer_batch(scored, loss_function=None)

        return bytes_of(
            student, teacher, Growth, score, lambda: data, partial(update_loss, self.actor_config, student.srpo)
        )


def rank_main(folder: Path, name: str, checkpointing: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = Rank(folder, checkpointing, dist.get_world_size())
    generator = torch.Generator().manual_seed(dist.get_rank())
    measured = [rank.step(generator) for _ in range(2)][1]  # the first step makes the optimiser's moments
    if dist.get_rank() == 0:
        predicted = predict(rank.config, rank.config.actor_rollout_ref.model.path)
        for item, value in measured.items():
            row = {"model": name, "ranks": dist.get_world_size(), "checkpointing": checkpointing, "item": item}
            row |= {"predicted_mb": round(predicted[item] / 2**20, 1), "measured_mb": round(value / 2**20, 1)}
            print(json.dumps({**row, "ratio": round(predicted[item] / value, 3) if value else None}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")
