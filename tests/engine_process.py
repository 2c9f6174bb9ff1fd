"""One rank of tests/test_engine.py: `torchrun --nproc-per-node N tests/engine_process.py FOLDER MODEL ...`.

Runs the real RoutedEngine as student and as self-teacher (FSDP2 over gloo, fp32) on the small random models in FOLDER/MODEL and a
fixed mini-batch of rollouts, cut in several ways, and writes what it saw to FOLDER/MODEL_WORLD.pt. The first model is tried in
every way, the others with the method's own case alone. The comparisons are in the test file.
"""

import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from engine_rows import CASES, ROWS, make_batch, make_rows, plain_objective, taught
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from transformers import AutoModelForCausalLM
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.base import EngineRegistry

from srpo_recipe.records import checkpoint
from srpo_recipe.settings.options import needs_reference
from srpo_recipe.settings.schema import TeacherConfig
from srpo_recipe.training.engine import MODEL_TYPE
from srpo_recipe.training.loss_metrics import DISTILL_TOKENS, LARGEST, OVER_DISTILLED, OVER_POLICY, OVER_ROUTES, TOKENS
from srpo_recipe.training.losses import update_loss
from srpo_recipe.training.seen import SeenTokens

RATE = 0.05
SPLITS = {"one": ROWS, "four": ROWS // 4, "row": 1}  # rows a micro-batch on one rank; a rank of two has half of them
SAMPLED = ("policy/entropy_of_samples", "policy/rollout_probs_diff")  # of "update" alone
SHOWN = (*OVER_DISTILLED, *OVER_POLICY, *OVER_ROUTES, *LARGEST, DISTILL_TOKENS, TOKENS)


def full(module) -> dict[str, torch.Tensor]:
    return {name: p.detach().full_tensor().clone() for name, p in module.named_parameters()}


def gradients(module) -> dict[str, torch.Tensor]:
    return {name: p.grad.full_tensor().clone() for name, p in module.named_parameters() if p.grad is not None}


def disturb(module) -> None:
    """Make another policy of a model: the teacher's."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.mul_(1 + 0.05 * (-1) ** number)


def copy_weights(model, engine) -> None:
    weights = full(engine.module)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


class Run:
    """The engines of one rank for one model, and what it found."""

    overrides: tuple[str, ...] = ()
    options: dict = {}  # of every batch
    model_type = MODEL_TYPE
    first = None  # the plain model that was there first, where adapters keep it
    split = 1  # ranks that split each sequence, which have the same rows

    def __init__(self, folder: Path, model: str, **engine_options):
        self.folder, self.name, self.world = folder, model, dist.get_world_size()
        self.shares = self.world // self.split
        with initialize_config_module("srpo_recipe_config", version_base=None):
            config = compose(
                "srpo",
                overrides=[
                    f"actor_rollout_ref.model.path={folder / model}",
                    "actor_rollout_ref.actor.optim.lr=1e-2",
                    "actor_rollout_ref.actor.optim.lr_warmup_steps=4",
                    *self.overrides,
                ],
            ).actor_rollout_ref
        with open_dict(config):
            config.actor.optim.total_training_steps = 10
        self.model_config = omega_conf_to_dataclass(config.model)
        self.actor_config = omega_conf_to_dataclass(config.actor)
        self.logits_made: list[int] = []  # tokens, for each pass of an output layer
        self.model, self.plain_teacher = (
            AutoModelForCausalLM.from_pretrained(folder / model, dtype=torch.float32, attn_implementation="sdpa")
            for _ in range(2)
        )
        self.found: dict = {}
        self.build(replace(self.actor_config.engine, **engine_options))
        self.rows = make_rows(self.model)
        share, place = ROWS // self.shares, dist.get_rank() // self.split
        self.mine = list(range(place * share, (place + 1) * share))
        names = ("loss", "gradient", "metrics", "logits_made", "micro_batches", "means", "seen")
        self.found |= {name: {} for name in names}
        self.found["response_tokens"] = sum(len(row["responses"]) for row in self.rows)

    def build(self, engine_config) -> None:
        """Student and teacher, and the plain models as they are."""
        self.student = self.engine(engine_config)
        self.student.actor_config = self.actor_config
        self.student.teacher = self.teacher = self.engine(replace(engine_config, forward_only=True))
        disturb(self.teacher.module)
        disturb(self.plain_teacher)

    def engine(self, engine_config):
        engine = EngineRegistry.new(
            model_type=self.model_type,
            backend=engine_config.strategy,
            model_config=deepcopy(self.model_config),
            engine_config=engine_config,
            optimizer_config=self.actor_config.optim,
            checkpoint_config=self.actor_config.checkpoint,
        )
        engine.initialize()
        head = engine.module.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, inputs: self.logits_made.append(inputs[0].shape[:-1].numel()))
        return engine

    def use(self, case: str, **options) -> None:
        """Settings of the case, and the teacher's pass over its routed rows, filled up to as many on every rank."""
        self.student.srpo = self.teacher.srpo = CASES[case]
        self.teacher.forget_teacher()
        if not taught(case).any():
            return
        routed = [row for row in self.mine if taught(case)[row]]
        most = int(taught(case).long().view(self.shares, -1).sum(-1).max())
        routed += [self.mine[0]] * (most - len(routed))
        options = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40 // self.split, **self.options, **options}
        for stage in ("teacher", "first") if needs_reference(CASES[case]) else ("teacher",):
            batch = make_batch(self.rows, case, routed, stage, **options)
            with self.teacher.eval_mode():
                assert self.teacher.infer_batch(batch, loss_function=None)["model_output"] == {}
        self.teacher.finish_teacher_pass()

    def backward(self, case: str, split: str, name: str = "", **options) -> None:
        """Loss, gradients and metrics of one mini-batch, put together as verl's TrainingWorker does."""
        engine, name = self.student, (case, name or split)
        size = max(1, SPLITS[split] // self.shares)
        options = {"micro_batch_size_per_gpu": size, **self.options, **options}
        batch = make_batch(self.rows, case, self.mine, "update", **options)
        self.logits_made.clear()
        seen = SeenTokens(self.teacher.states)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            loss_function = partial(update_loss, self.actor_config, CASES[case], seen=seen)
            output = engine.forward_backward_batch(batch, loss_function)
            self.found["gradient"][name] = gradients(engine.module)
        made = torch.tensor(sum(self.logits_made))
        dist.all_reduce(made)
        self.found["logits_made"][name] = int(made)
        loss = torch.tensor(sum(output["loss"]), dtype=torch.float64)
        dist.all_reduce(loss, op=dist.ReduceOp.AVG)
        self.found["loss"][name] = float(loss)
        gathered = [None] * self.world
        dist.all_gather_object(gathered, output["metrics"])
        gathered = gathered[:: self.split]  # verl takes those of one rank of a group
        self.found["metrics"][name] = {
            key: float(type(gathered[0][key]).aggregate_dp([one[key] for one in gathered]))
            for key in SHOWN
            if key not in SAMPLED or case == "update"
        }
        self.found["micro_batches"][name] = len(output["loss"])
        of_ranks: list = [None] * self.world
        dist.all_gather_object(of_ranks, seen.take())
        self.found["seen"][name] = {row: tokens for of_rank in of_ranks for row, tokens in of_rank.items()}
        assert not seen.rows

    def reference(self, case: str, name: str = "plain") -> None:
        self.model.zero_grad()
        plain = plain_objective(self.model, self.plain_teacher, self.rows, case, self.first)
        if plain.loss.requires_grad:
            plain.loss.backward()
        self.found["loss"][case, name], self.found["means"][case, name] = float(plain.loss), plain.means
        self.found["seen"][case, name] = plain.tokens
        self.found["gradient"][case, name] = {
            parameter: p.grad.clone() for parameter, p in self.model.named_parameters() if p.grad is not None
        }

    def second_step(self) -> None:
        """One optimiser step, after which the teacher has moved; then the same batch once more, as a second step has it."""
        self.use("srpo")
        copy_weights(self.plain_teacher, self.teacher)
        self.train()
        self.backward("srpo", "four", name="second step")
        copy_weights(self.model, self.student)
        self.reference("srpo", "second step, plain")

    def train(self, spoil: float | None = None) -> float:
        """One optimiser step; spoil: an advantage that one row gets. Returns the gradient's norm."""
        rows = [dict(row) for row in self.rows]
        if spoil is not None:
            rows[2]["advantages"] = torch.full_like(rows[2]["advantages"], spoil)
        options = {"micro_batch_size_per_gpu": max(1, 4 // self.shares), **self.options}
        batch = make_batch(rows, "srpo", self.mine, "update", **options)
        with self.student.train_mode():
            output = self.student.train_batch(batch, partial(update_loss, self.actor_config, self.student.srpo))
        return output["metrics"].get("grad_norm")  # of a group, one rank has it

    def skipped_step(self) -> None:
        """A step without a finite gradient, then a good one: what moved."""
        self.use("srpo")
        start = [full(engine.module) for engine in (self.student, self.teacher)]
        rates = [self.student.lr_scheduler.get_last_lr()[0]]
        norm = self.train(spoil=float("nan"))
        rates.append(self.student.lr_scheduler_step())
        after = [full(engine.module) for engine in (self.student, self.teacher)]
        skipped = self.student.skipped_steps
        self.train()
        rates.append(self.student.lr_scheduler_step())
        self.found["skip"] = {"norm": norm, "start": start, "after": after, "skipped": skipped, "rates": rates}

    def ema(self) -> None:
        """Two optimiser steps with the teacher following, the float64 recursion beside it; save, disturb, load."""
        student, teacher = self.student, self.teacher
        self.use("srpo")
        student.srpo = replace(CASES["srpo"], teacher=TeacherConfig(ema_rate=RATE))
        self.found["teacher_at_start"], self.found["student_at_start"] = full(teacher.module), full(student.module)
        recursion = {name: value.double() for name, value in full(teacher.module).items()}
        for _ in range(2):
            student.lr_scheduler_step()  # off the first step of the warm-up, which moves nothing
            self.use("srpo")  # a pass may leave the teacher's weights gathered
            student.srpo = replace(CASES["srpo"], teacher=TeacherConfig(ema_rate=RATE))
            self.train()
            for name, value in full(student.module).items():
                recursion[name] = (1 - RATE) * recursion[name] + RATE * value.double()
        self.found |= {"teacher": full(teacher.module), "student": full(student.module), "recursion": recursion}
        self.found["distance"] = student.relative_teacher_distance()
        actor_path = str(self.folder / f"checkpoint_{self.world}" / "global_step_2" / "actor")
        teacher.save_checkpoint(checkpoint.teacher_path(actor_path), None, 2)
        with torch.no_grad():
            for parameter in teacher.module.parameters():
                parameter.mul_(0.5)
        checkpoint.require_teacher(actor_path, self.world, dist.get_rank())
        teacher.load_checkpoint(checkpoint.teacher_path(actor_path), None, False)
        self.found["loaded"], self.found["actor_path"] = full(teacher.module), actor_path
        self.found["teacher_has_optimizer"] = teacher.optimizer is not None


def try_everything(run: Run) -> None:
    for case in [name for name in CASES if not needs_reference(CASES[name])]:
        run.reference(case)
        run.use(case)
        for split in SPLITS:
            run.backward(case, split)
        run.found["kept", case] = sorted(run.teacher.states.kept)
    run.use("srpo")
    run.backward("srpo", "one", name="dynamic", use_dynamic_bsz=True, max_token_len_per_gpu=40)
    run.use("srpo", use_remove_padding=True)
    run.backward("srpo", "four", name="packed", use_remove_padding=True)
    run.skipped_step()
    run.second_step()
    run.ema()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, models = Path(sys.argv[1]), sys.argv[2:]
    for place, model in enumerate(models):
        run = Run(folder, model)
        if place == 0:
            try_everything(run)
        else:
            run.reference("srpo")
            run.use("srpo")
            run.backward("srpo", "four")
        if dist.get_rank() == 0:
            torch.save(run.found, folder / f"{model}_{run.world}.pt")
    if len(models) == 1:
        run = Run(folder, models[0], reshard_after_forward=False)
        run.ema()
        if dist.get_rank() == 0:
            torch.save(run.found, folder / f"gathered_{run.world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
