"""One rank of tests/test_engine.py: `python -m torch.distributed.run --nproc-per-node N tests/engine_process.py FOLDER`.

Runs the real RoutedEngine (FSDP2 over gloo, fp32) on a small random Qwen3 in FOLDER/model and a fixed mini-batch of ROWS
rollouts, cut in several ways, and writes what it saw to FOLDER/result_WORLD.pt. The comparisons are in the test file.
"""

import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.base import EngineRegistry

from srpo_recipe.method.dw_sdpo import confidence, divergence
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.loss import Totals, count_totals, routed_loss
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import logits_at, teacher_statistics
from srpo_recipe.records import checkpoint
from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig
from srpo_recipe.training import worker

ROWS, VOCABULARY, TOP_K, TEMPERATURE = 16, 100, 8, 0.8
CLIP = (0.2, 0.28, 3.0)
RATE = 0.05
SPLITS = {"one": ROWS, "four": ROWS // 4, "row": 1}  # rows a micro-batch on one rank; a rank of two has half of them

# name -> settings; the routes of the rows follow in `routes`
CASES = {
    "srpo": SRPOConfig(route="srpo", beta=1.0, top_k=TOP_K, chunk_megabytes=0.0012),  # 3 tokens
    "sdpo": SRPOConfig(route="sdpo", beta=0.0, top_k=TOP_K),
    "grpo": SRPOConfig(route="grpo", top_k=TOP_K),
    "advantage_mix": SRPOConfig(route="advantage_mix", beta=0.0, top_k=TOP_K),
    "unrouted": SRPOConfig(route="srpo", top_k=TOP_K),  # no row takes the distillation route
    "nothing": SRPOConfig(route="sdpo", top_k=TOP_K),  # no row takes any route
    "sequence": SRPOConfig(route="srpo", average="sequence", top_k=TOP_K),
    "micro_scope": SRPOConfig(route="srpo", weight_scope="micro_batch", top_k=TOP_K),
}


def routes(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(policy_B, distill_B). Most routed rows lie in the first half, so two ranks have very different shares."""
    teacher_B = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]).bool()
    if case in ("unrouted", "grpo"):
        return torch.ones(ROWS), torch.zeros(ROWS)
    if case == "nothing":
        return torch.zeros(ROWS), torch.zeros(ROWS)
    if case == "sdpo":
        return torch.zeros(ROWS), teacher_B.float()
    if case == "all":
        return torch.zeros(ROWS), torch.ones(ROWS)
    if case == "advantage_mix":
        return torch.full((ROWS,), 0.9), teacher_B * 0.1
    return (~teacher_B).float(), teacher_B.float()


def make_rows(model) -> list[dict[str, torch.Tensor]]:
    """The mini-batch, row by row. Masks have holes, one row is all masked, ratios reach both clips and the dual clip."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row in range(ROWS):
        prompt, response = 3 + row % 5, 1 + (5 * row) % 11
        ids = torch.randint(4, VOCABULARY, (prompt + response,), generator=generator)
        mask = torch.ones(response, dtype=torch.long)
        if row == 11:
            mask[:] = 0
        elif response > 4:
            mask[2] = 0
        with torch.no_grad():
            logits_RV = model(ids.unsqueeze(0)).logits[0, prompt - 1 : -1] / TEMPERATURE
        log_probs_R = logits_RV.log_softmax(-1).gather(-1, ids[prompt:].unsqueeze(-1)).squeeze(-1)
        noise = torch.randn(response, generator=generator) * 0.4
        noise[0] = -1.5 if row % 2 else noise[0]
        teacher_RV = logits_RV + torch.randn(logits_RV.shape, generator=generator)
        top_RK = top_ids(logits_RV, TOP_K)
        teacher = teacher_statistics(teacher_RV)
        rows.append(
            {
                "prompts": ids[:prompt],
                "responses": ids[prompt:],
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "response_mask": mask,
                "old_log_probs": log_probs_R + noise,
                "rollout_log_probs": log_probs_R + torch.randn(response, generator=generator) * 0.5,
                "advantages": (torch.randn(1, generator=generator) - 0.2).expand(response).clone(),
                "rollout_is_weights": torch.rand(response, generator=generator) * 1.7 + 0.3,
                "top": top_RK.int(),
                "teacher": teacher.log_probs(logits_at(teacher_RV, top_RK)),
                "entropy": teacher.entropy_N,
            }
        )
    return rows


def make_batch(rows: list[dict], case: str, mine: slice, rows_per_micro_batch: int, **options) -> TensorDict:
    """verl's no-padding mini-batch of the rows `mine`, with the trainer's fields: R * K flattened, one dummy off the route."""
    policy_B, distill_B = (weights[mine] for weights in routes(case))
    rows = rows[mine]

    def jagged(tensors):
        return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)

    plain = ("prompts", "responses", "input_ids", "position_ids", "response_mask")
    plain += ("old_log_probs", "advantages", "rollout_is_weights")
    fields = {key: jagged(row[key] for row in rows) for key in plain}
    fields["loss_mask"] = jagged(row["response_mask"] for row in rows)
    fields |= {worker.POLICY: policy_B, worker.DISTILL: distill_B}
    if routes(case)[1].any():  # otherwise the trainer writes none of them
        for key, name, dummy in (
            (worker.TOP_IDS, "top", torch.zeros(TOP_K, dtype=torch.int)),
            (worker.TEACHER_LOG_PROBS, "teacher", torch.zeros(1)),
            (worker.TEACHER_ENTROPY, "entropy", torch.zeros(1)),
        ):
            fields[key] = jagged(
                row[name].flatten() if routed else dummy for row, routed in zip(rows, distill_B > 0, strict=True)
            )
    data = TensorDict(fields, batch_size=len(rows))
    options = {"srpo_pass": "update", "use_dynamic_bsz": False, **options}
    tu.assign_non_tensor(
        data,
        temperature=TEMPERATURE,
        global_batch_size=ROWS,
        micro_batch_size_per_gpu=rows_per_micro_batch,
        calculate_entropy=False,
        use_remove_padding=False,
        **options,
    )
    return data


def plain_loss(model, rows: list[dict], case: str) -> torch.Tensor:
    """The objective from the pure core on the plain model's logits, all rows at once."""
    settings = CASES[case]
    policy_B, distill_B = routes(case)
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(ROWS, width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = row["input_ids"]
    attention = torch.tensor([[t < len(row["input_ids"]) for t in range(width)] for row in rows]).long()
    logits = model(input_ids=ids, attention_mask=attention).logits
    T = max(len(row["responses"]) for row in rows)

    def pad(name: str) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(row[name], (0, T - len(row[name]))) for row in rows])

    log_prob_BT, divergence_BT = torch.zeros(ROWS, T), torch.zeros(ROWS, T)
    for i, row in enumerate(rows):
        R, P = len(row["responses"]), len(row["prompts"])
        logits_RV = logits[i, P - 1 : P - 1 + R]
        log_probs_R = (logits_RV / TEMPERATURE).log_softmax(-1).gather(-1, row["responses"].unsqueeze(-1)).squeeze(-1)
        log_prob_BT = log_prob_BT.index_put((torch.tensor(i), torch.arange(R)), log_probs_R)
        if distill_B[i] > 0:
            _, log_mass_RB = student_statistics(logits_RV, row["responses"], row["top"].long(), temperature=TEMPERATURE)
            found_R = divergence(log_mass_RB, row["teacher"])
            divergence_BT = divergence_BT.index_put((torch.tensor(i), torch.arange(R)), found_R)
    policy_loss_BT, *_ = clipped_policy_loss(log_prob_BT, pad("old_log_probs"), pad("advantages"), *CLIP)
    mask_BT, confidence_BT = pad("response_mask").bool(), confidence(pad("entropy"), settings.beta)
    totals = Totals.from_tensor(count_totals(mask_BT, policy_B, distill_B, confidence_BT))
    importance_BT = pad("rollout_is_weights")
    if settings.average == "sequence":  # each row's mean over its own tokens, then the mean over the rows
        length_B = mask_BT.sum(-1).clamp(min=1)
        rows_on_route = int((mask_BT.any(-1) & ((policy_B > 0) | (distill_B > 0))).sum())
        importance_BT = importance_BT / length_B.unsqueeze(-1) * totals.tokens / rows_on_route
    return routed_loss(
        policy_loss_BT, divergence_BT, mask_BT, policy_B, distill_B, confidence_BT, importance_BT, totals
    )


def full(module) -> dict[str, torch.Tensor]:
    return {name: p.detach().full_tensor().clone() for name, p in module.named_parameters()}


def gradients(module) -> dict[str, torch.Tensor]:
    return {name: p.grad.full_tensor().clone() for name, p in module.named_parameters() if p.grad is not None}


class Run:
    """The engines of one rank, and what it found."""

    def __init__(self, folder: Path):
        self.folder, self.rank, self.world = folder, dist.get_rank(), dist.get_world_size()
        with initialize_config_module("srpo_recipe_config", version_base=None):
            config = compose(
                "srpo",
                overrides=[
                    f"actor_rollout_ref.model.path={folder / 'model'}",
                    "actor_rollout_ref.actor.optim.lr=1e-2",
                    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
                ],
            ).actor_rollout_ref
        with open_dict(config):
            config.actor.optim.total_training_steps = 10
        self.model_config = omega_conf_to_dataclass(config.model)
        self.actor_config = omega_conf_to_dataclass(config.actor)
        self.logits_made: list[int] = []  # tokens, for each pass of an output layer
        self.student = self.engine(self.actor_config.engine)
        self.teacher = self.engine(replace(self.actor_config.engine, forward_only=True))
        self.student.srpo = self.teacher.srpo = CASES["srpo"]
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        self.rows = make_rows(self.model)
        share = ROWS // self.world
        self.mine = slice(self.rank * share, (self.rank + 1) * share)
        self.found = {"loss": {}, "gradient": {}, "metrics": {}, "logits_made": {}}
        self.found["response_tokens"] = sum(len(row["responses"]) for row in self.rows)

    def engine(self, engine_config):
        engine = EngineRegistry.new(
            model_type=worker.MODEL_TYPE,
            backend=engine_config.strategy,
            model_config=deepcopy(self.model_config),
            engine_config=engine_config,
            optimizer_config=self.actor_config.optim,
            checkpoint_config=self.actor_config.checkpoint,
        )
        engine.initialize()
        head = engine.module.get_output_embeddings()
        head.register_forward_hook(lambda _, inputs, output: self.logits_made.append(output.shape[:-1].numel()))
        return engine

    def loss_function(self, case: str):
        return partial(worker.routed_ppo_loss, self.actor_config, CASES[case])

    def batch(self, case: str, split: str, **options) -> TensorDict:
        return make_batch(self.rows, case, self.mine, max(1, SPLITS[split] // self.world), **options)

    def backward(self, case: str, split: str, **options) -> None:
        """Loss and gradients of one mini-batch, put together as verl's TrainingWorker does."""
        engine = self.student
        engine.srpo = CASES[case]
        self.logits_made.clear()
        with engine.train_mode():
            engine.optimizer_zero_grad()
            output = engine.forward_backward_batch(self.batch(case, split, **options), self.loss_function(case))
            found = gradients(engine.module)
        made = torch.tensor(sum(self.logits_made))
        dist.all_reduce(made)
        loss = torch.tensor(sum(output["loss"]), dtype=torch.float64)
        dist.all_reduce(loss, op=dist.ReduceOp.AVG)
        name = (case, "dynamic" if options.get("use_dynamic_bsz") else split)
        self.found["loss"][name], self.found["gradient"][name] = float(loss), found
        self.found["logits_made"][name] = int(made)
        gathered = [None] * self.world
        dist.all_gather_object(gathered, output["metrics"])
        merged = {key: [one[key] for one in gathered] for key in gathered[0] if key.startswith("distill/")}
        self.found["metrics"][name] = {key: float(type(one[0]).aggregate_dp(one)) for key, one in merged.items()}
        self.found["micro_batches"] = self.found.get("micro_batches", {}) | {name: len(output["loss"])}

    def reference(self) -> None:
        for case in CASES:
            self.model.zero_grad()
            loss = plain_loss(self.model, self.rows, case)
            loss.backward()
            gradient = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
            self.found["loss"][case, "plain"], self.found["gradient"][case, "plain"] = float(loss), gradient

    def passes(self) -> None:
        """student_ids on the student as it stands, teacher with every row under a longer prompt; and the plain model's answer."""
        hint = torch.arange(4, 11)
        rows = [
            {**row, "prompts": torch.cat([hint, row["prompts"]]), "input_ids": torch.cat([hint, row["input_ids"]])}
            for row in self.rows
        ]
        rows = [{**row, "position_ids": torch.arange(len(row["input_ids"]))} for row in rows]
        options = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40}
        data = self.batch("srpo", "four", srpo_pass="student_ids", **options)
        scored = make_batch(rows, "all", self.mine, 1, srpo_pass="teacher", distillation_only=True, **options)
        self.student.srpo = CASES["srpo"]
        for stage, engine, batch in (("student_ids", self.student, data), ("teacher", self.teacher, scored)):
            with engine.eval_mode():
                output = engine.infer_batch(batch, loss_function=None)["model_output"]
            self.found[f"{stage}_pass"] = {
                key: [row.clone() for row in value.unbind()] for key, value in output.items()
            }

        def log_probs(row):
            with torch.no_grad():
                logits = self.model(row["input_ids"].unsqueeze(0)).logits[0, len(row["prompts"]) - 1 : -1]
            return (logits.double() / TEMPERATURE).log_softmax(-1)

        self.found["direct"] = [
            {
                "routed": bool(routed),
                "top": log_probs(row).topk(TOP_K).indices,
                "log_probs": log_probs(enriched).gather(-1, row["top"].long()),
                "entropy": torch.special.entr(log_probs(enriched).exp()).sum(-1),
                "response_log_probs": log_probs(row).gather(-1, row["responses"].unsqueeze(-1)).squeeze(-1),
            }
            for row, enriched, routed in list(zip(self.rows, rows, routes("srpo")[1] > 0, strict=True))[self.mine]
        ]

    def one_forward(self) -> None:
        """One optimiser step a batch in both ways: by kept states, and by passes of their own for log-probs and ids."""
        rows = self.rows
        options = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40}
        student, teacher = self.student, self.teacher
        student.srpo = teacher.srpo = CASES["srpo"]
        student.teacher = teacher
        routed_B = routes("srpo")[1][self.mine] > 0
        with torch.no_grad():  # another policy than the student
            for number, parameter in enumerate(teacher.module.parameters()):
                parameter.mul_(1 + 0.05 * (-1) ** number)

        def infer(engine, batch):
            with engine.eval_mode():
                return engine.infer_batch(batch, loss_function=None)["model_output"]

        hint = torch.arange(4, 11)
        longer = [
            {**row, "prompts": torch.cat([hint, row["prompts"]]), "input_ids": torch.cat([hint, row["input_ids"]])}
            for row in rows
        ]
        longer = [{**row, "position_ids": torch.arange(len(row["input_ids"]))} for row in longer]
        number_B = torch.where(routed_B, torch.arange(len(routed_B)) * 7 + 100, -1)

        results = {}
        for keep in (False, True):
            update = self.batch("srpo", "four", **options)
            for key in ("old_log_probs", "rollout_is_weights", worker.TEACHER_LOG_PROBS, worker.TOP_IDS):
                del update[key]
            update["rollout_log_probs"] = torch.nested.as_nested_tensor(
                [row["rollout_log_probs"] for row in rows[self.mine]], layout=torch.jagged
            )
            scored = make_batch(
                longer, "srpo", self.mine, 1, srpo_pass="teacher", use_dynamic_bsz=True, max_token_len_per_gpu=1000
            )
            if not keep:
                found = infer(student, self.batch("srpo", "four", srpo_pass="student_ids", **options))
                old = [
                    row[len(one["prompts"]) - 1 : -1]
                    for row, one in zip(found["log_probs"].unbind(), rows[self.mine], strict=True)
                ]
                update["old_log_probs"] = torch.nested.as_nested_tensor(old, layout=torch.jagged)
                update["rollout_is_weights"] = torch.nested.as_nested_tensor(
                    [
                        (torch.exp(o - row["rollout_log_probs"]) * row["response_mask"]).clamp(max=2.0)
                        for o, row in zip(old, rows[self.mine], strict=True)
                    ],
                    layout=torch.jagged,
                )
                update[worker.TOP_IDS] = scored[worker.TOP_IDS] = found[worker.TOP_IDS]
            scored = self.only_routed(scored, routed_B, number_B if keep else None)
            teacher.kept.clear()
            output = infer(teacher, scored)
            results[keep, "kept"] = sorted(teacher.kept)
            for key in (worker.TEACHER_ENTROPY, worker.TEACHER_LOG_PROBS):
                if key in output:
                    values = iter(output[key].unbind())
                    update[key] = torch.nested.as_nested_tensor(
                        [next(values) if routed else torch.zeros(1) for routed in routed_B.tolist()],
                        layout=torch.jagged,
                    )
            if keep:
                update[worker.TEACHER_ROW] = number_B
                tu.assign_non_tensor(update, importance_cap=2.0)
            with student.train_mode():
                student.optimizer_zero_grad()
                output = student.forward_backward_batch(update, self.loss_function("srpo"))
                results[keep, "gradient"] = gradients(student.module)
            loss = torch.tensor(sum(output["loss"]), dtype=torch.float64)
            dist.all_reduce(loss, op=dist.ReduceOp.AVG)
            results[keep, "loss"] = float(loss)
        self.found["one_forward"] = results

    @staticmethod
    def only_routed(batch: TensorDict, routed_B: torch.Tensor, number_B: torch.Tensor | None) -> TensorDict:
        """The rows that the trainer sends to the teacher, under their numbers where it wants the states kept."""
        chosen = tu.index_select_tensor_dict(batch, torch.nonzero(routed_B).flatten().tolist())
        if number_B is not None:
            chosen[worker.TEACHER_ROW] = number_B[routed_B]
        return chosen

    def ema(self) -> None:
        """Two optimiser steps with the teacher following, the float64 recursion beside it; save, disturb, load."""
        student, teacher = self.student, self.teacher
        student.srpo = replace(CASES["srpo"], teacher=TeacherConfig(ema_rate=RATE))
        student.teacher = teacher
        self.found["teacher_at_start"], self.found["student_at_start"] = full(teacher.module), full(student.module)
        recursion = {name: value.double() for name, value in full(teacher.module).items()}
        for _ in range(2):
            with student.train_mode():
                student.train_batch(self.batch("srpo", "four"), self.loss_function("srpo"))
            for name, value in full(student.module).items():
                recursion[name] = (1 - RATE) * recursion[name] + RATE * value.double()
        self.found |= {"teacher": full(teacher.module), "student": full(student.module), "recursion": recursion}
        self.found["distance"] = student.relative_teacher_distance()
        actor_path = str(self.folder / f"checkpoint_{self.world}" / "global_step_2" / "actor")
        teacher.save_checkpoint(checkpoint.teacher_path(actor_path), None, 2)
        with torch.no_grad():
            for parameter in teacher.module.parameters():
                parameter.mul_(0.5)
        checkpoint.require_teacher(actor_path, self.world, self.rank)
        teacher.load_checkpoint(checkpoint.teacher_path(actor_path), None, False)
        self.found["loaded"], self.found["actor_path"] = full(teacher.module), actor_path
        self.found["teacher_has_optimizer"] = teacher.optimizer is not None


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run = Run(Path(sys.argv[1]))
    for case in CASES:
        for split in SPLITS:
            run.backward(case, split)
    run.backward("srpo", "one", use_dynamic_bsz=True, max_token_len_per_gpu=40)
    if run.world == 1:
        run.reference()
    run.passes()
    run.ema()
    run.one_forward()
    everyone = [None] * run.world
    dist.all_gather_object(everyone, {key: run.found[key] for key in ("student_ids_pass", "teacher_pass", "direct")})
    if run.rank == 0:
        torch.save({**run.found, "everyone": everyone}, run.folder / f"result_{run.world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
