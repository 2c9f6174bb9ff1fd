"""The mini-batch of tests/engine_process.py: rows, verl's fields of them, and the objective on plain models.

The objective is written here once more with full softmaxes and without the package's passes over the vocabulary, kept states,
views or totals; what it shares with the package is the divergence and the clipped surrogate, which test_objective.py holds
against float64.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from srpo_recipe.method.dw_sdpo import divergence
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.training import fields
from srpo_recipe.training.passes import PASS

ROWS, VOCABULARY, TOP_K, TEMPERATURE, CAP = 16, 100, 8, 0.8, 2.0
CLIP = (0.2, 0.28, 3.0)
HINT = torch.arange(4, 11)  # what the teacher's prompt has before the student's
SEEN_ROWS, SEEN_WORDS = (0, 2, 4, 13), 5  # whose tokens are wanted; the second is on the GRPO route of "srpo"
MASKED_ROW = 3  # on the distillation route of "srpo", and all of its response is masked

# name -> settings; the routes of the rows follow in `routes`
CASES = {
    "srpo": SRPOConfig(route="srpo", beta=1.0, top_k=TOP_K, chunk_megabytes=0.0012, logits_rows=5),  # 3 tokens
    "sdpo": SRPOConfig(route="sdpo", beta=0.0, top_k=TOP_K),
    "grpo": SRPOConfig(route="grpo", top_k=TOP_K),
    "advantage_mix": SRPOConfig(route="advantage_mix", beta=0.0, top_k=TOP_K),
    "unrouted": SRPOConfig(route="srpo", top_k=TOP_K),  # no row takes the distillation route
    "nothing": SRPOConfig(route="sdpo", top_k=TOP_K),  # no row takes any route
    "masked": SRPOConfig(route="srpo", top_k=TOP_K),  # the one routed row is all masked
    "sequence": SRPOConfig(route="srpo", average="sequence", top_k=TOP_K, logits_rows=7),
    "by_place": SRPOConfig(route="srpo", weight="by_place", weight_options={"power": 2.0}, top_k=TOP_K, logits_rows=9),
    "gated": SRPOConfig(route="srpo", weight="gated", weight_options={"sharpness": 2.0}, top_k=TOP_K, logits_rows=9),
    "fading": SRPOConfig(route="srpo", weight="fading", top_k=TOP_K, logits_rows=9),
    "tempered": SRPOConfig(route="srpo", target="tempered", target_options={"most": 0.8}, top_k=TOP_K, logits_rows=9),
    "modulated": SRPOConfig(route="srpo", advantage="modulated", top_k=TOP_K, logits_rows=9),
    "mixed": SRPOConfig(
        route="sdpo", target="mixed", target_options={"share": 0.3}, top_k=TOP_K, logits_rows=9
    ),  # LoRA
    "whole": SRPOConfig(route="srpo", top_k=TOP_K, logits_rows=None),  # all logits of a micro-batch at once
    "reverse": SRPOConfig(route="sdpo", beta=0.0, alpha=1.0, top_k=TOP_K),  # KL(student || teacher)
    "update": SRPOConfig(route="srpo", top_k=TOP_K, logits_rows=2),  # the old policy is the update's own forward
}


OWN = ("update", "fading")  # whose old policy is the update's own forward pass
TAUGHT = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]).bool()


def taught(case: str) -> Tensor:
    """bool: the rows that the teacher scores."""
    return TAUGHT if case == "modulated" else routes(case)[1] > 0


def routes(case: str) -> tuple[Tensor, Tensor]:
    """(policy_B, distill_B). Most routed rows lie in the first half, so two ranks have very different shares."""
    teacher_B = TAUGHT
    if case == "modulated":  # the others have a teacher, and are right
        teacher_B = TAUGHT & (torch.arange(ROWS) % 2 == 0)
    if case == "masked":
        teacher_B = torch.arange(ROWS) == MASKED_ROW
    if case in ("unrouted", "grpo"):
        return torch.ones(ROWS), torch.zeros(ROWS)
    if case == "nothing":
        return torch.zeros(ROWS), torch.zeros(ROWS)
    if case in ("sdpo", "reverse", "mixed"):
        return torch.zeros(ROWS), teacher_B.float()
    if case == "advantage_mix":
        return torch.full((ROWS,), 0.9), teacher_B * 0.1
    return (~teacher_B).float(), teacher_B.float()


def make_rows(model) -> list[dict[str, Tensor]]:
    """The mini-batch, row by row. Masks have holes, two rows are all masked, ratios reach both clips and the dual clip."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row in range(ROWS):
        prompt, response = 3 + row % 5, 1 + (5 * row) % 11
        ids = torch.randint(4, VOCABULARY, (prompt + response,), generator=generator)
        mask = torch.ones(response, dtype=torch.long)
        if row in (11, MASKED_ROW):
            mask[:] = 0
        elif response > 4:
            mask[2] = 0
        with torch.no_grad():
            logits_RV = model(ids.unsqueeze(0)).logits[0, prompt - 1 : -1] / TEMPERATURE
        log_probs_R = logits_RV.log_softmax(-1).gather(-1, ids[prompt:].unsqueeze(-1)).squeeze(-1)
        noise = torch.randn(response, generator=generator) * 0.4
        noise[0] = -1.5 if row % 2 else noise[0]
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
            }
        )
    return rows


def for_the_teacher(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same response under the teacher's prompt."""
    ids = torch.cat([HINT, row["input_ids"]])
    return row | {"prompts": ids[: -len(row["responses"])], "input_ids": ids, "position_ids": torch.arange(len(ids))}


def make_batch(rows: list[dict], case: str, numbers: list[int], stage: str, **options) -> TensorDict:
    """verl's no-padding batch of the rows with these numbers, with the trainer's fields. stage: "update" or "teacher"."""
    policy_B, distill_B = (weights[numbers] for weights in routes(case))
    chosen = [for_the_teacher(rows[n]) if stage != "update" else rows[n] for n in numbers]
    keys = ["prompts", "responses", "input_ids", "position_ids", "response_mask"]
    if stage == "update":
        keys += ["advantages"]
        keys += ["rollout_log_probs"] if case in OWN else ["old_log_probs", "rollout_is_weights"]
    columns = {key: fields.jagged([row[key] for row in chosen]) for key in keys}
    columns["loss_mask"] = columns["response_mask"]
    columns |= {fields.POLICY: policy_B, fields.DISTILL: distill_B}
    columns[fields.TEACHER_ROW] = torch.where(taught(case)[numbers], 7 * torch.tensor(numbers) + 100, -1)
    columns[fields.SEEN] = torch.tensor([number if number in SEEN_ROWS else -1 for number in numbers])
    data = TensorDict(columns, batch_size=len(numbers))
    tu.assign_non_tensor(
        data,
        temperature=TEMPERATURE,
        global_batch_size=ROWS,
        calculate_entropy=False,
        **{PASS: stage, fields.IMPORTANCE_CAP: CAP, "use_dynamic_bsz": False, "use_remove_padding": False, **options},
    )
    return data


@dataclass
class Plain:
    """The objective on the whole mini-batch: loss, the means that the log shows of it, and its rows token by token."""

    loss: Tensor
    means: dict[str, float]
    tokens: dict[int, dict[str, Tensor]]


def plain_objective(model, teacher, rows: list[dict], case: str, first=None) -> Plain:
    """The objective of section 3.3 on plain models, row by row. first: the first model, for a target that asks it."""
    settings, (policy_B, distill_B) = CASES[case], routes(case)
    parts, routed = [], []
    columns = policy_B.tolist(), distill_B.tolist(), taught(case).tolist()
    for row, policy, distill, has_teacher in zip(rows, *columns, strict=True):
        part = _row(model, teacher, row | {"taught": has_teacher}, settings, case, first)
        part["policy"], part["distill"] = policy * part["mask"], distill * part["mask"]
        parts.append(part)
        routed += [part["confidence"][part["distill"] > 0]]
    either = torch.cat([(part["policy"] + part["distill"]) > 0 for part in parts])
    mean = torch.cat(routed).mean() if torch.cat(routed).numel() and case != "fading" else torch.tensor(1.0)
    for part in parts:
        part["either"] = part["policy"] + part["distill"]
    on_route = [part for part in parts if ((part["policy"] + part["distill"]) > 0).any()]
    total = sum(
        (
            (part["policy"] * part["l_grpo"] + part["distill"] * part["confidence"] / mean * part["l_sdpo"])
            * part["importance"]
            / (part["mask"].sum().clamp(min=1) if settings.average == "sequence" else 1.0)
        ).sum()
        for part in parts
    )
    denominator = len(on_route) if settings.average == "sequence" else int(either.sum())

    def over(weight: str, name: str) -> float:
        chosen = [part[name].detach()[part[weight] > 0].float() for part in parts]
        return float(torch.cat(chosen).mean()) if torch.cat(chosen).numel() else 0.0

    weights = [part | {"weight": part["confidence"] / mean} for part in parts]
    found = torch.cat([part["weight"][part["distill"] > 0] for part in weights])
    tokens = max(int(either.sum()), 1)
    means = {
        "tokens": float(either.sum()),
        "policy/token_share": int(sum((part["policy"] > 0).sum() for part in parts)) / tokens,
        "distill/token_share": found.numel() / tokens,
        "policy/importance": over("either", "importance"),
        "policy/clip_fraction": over("policy", "clipped"),
        "policy/dual_clip_fraction": over("policy", "dual"),
        "policy/approx_kl": over("policy", "kl"),
        "distill/divergence": over("distill", "l_sdpo"),
        "distill/teacher_entropy": over("distill", "entropy"),
        "distill/weight_mean": float(found.mean()) if found.numel() else 0.0,
        "distill/weight_square": float(found.square().mean()) if found.numel() else 0.0,
        "distill/weight_largest": float(found.max()) if found.numel() else 0.0,
        "distill/tokens": float(found.numel()),
    }
    tokens = {row: _seen(weights[row], rows[row]) for row in SEEN_ROWS}
    return Plain(total / max(denominator, 1), means, tokens)


def _seen(part: dict[str, Tensor], row: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training/seen.py should have of a row that is on the distillation route; of another one it has the first four."""
    student, teacher = (part[name].topk(SEEN_WORDS, dim=-1) for name in ("student_RV", "teacher_RV"))
    own = row["responses"].unsqueeze(-1)
    found = {
        "log_prob": part["student_RV"].gather(-1, own).squeeze(-1),
        "advantage": row["advantages"],
        "counted": row["response_mask"].bool(),
        "sampler_log_prob": row["rollout_log_probs"],
        "teacher_log_prob": part["teacher_RV"].gather(-1, own).squeeze(-1),
        "teacher_entropy": part["entropy"],
        "weight": part["weight"],
        "divergence": part["l_sdpo"],
        "student_ids": student.indices,
        "student_word_log_probs": student.values,
        "teacher_ids": teacher.indices,
        "teacher_word_log_probs": teacher.values,
    }
    return {name: values.detach() for name, values in found.items()}


def tempered(student_RB: Tensor, teacher_RB: Tensor, _) -> Tensor:
    """T^(1 - a) S^a over its sum, a = 1.6 (sigmoid(5 JSD) - 1/2), in probabilities."""
    student_RB, teacher_RB = student_RB.double().exp(), teacher_RB.double().exp()
    middle_RB = (student_RB + teacher_RB) / 2
    distances = [(one * (one / middle_RB).log()).sum(-1, keepdim=True) / 2 for one in (student_RB, teacher_RB)]
    share_R1 = 1.6 * (1 / (1 + torch.exp(-5 * sum(distances))) - 0.5)
    target_RB = teacher_RB ** (1 - share_R1) * student_RB**share_R1
    return (target_RB / target_RB.sum(-1, keepdim=True)).log().float()


def _row(model, teacher, row: dict[str, Tensor], settings: SRPOConfig, case: str, first) -> dict[str, Tensor]:
    """Everything of one row, [R] each."""
    length = len(row["responses"])
    log_probs_RV = (model(row["input_ids"].unsqueeze(0)).logits[0, -length - 1 : -1] / TEMPERATURE).log_softmax(-1)
    with torch.no_grad():
        enriched = for_the_teacher(row)["input_ids"]
        teacher_RV = (teacher(enriched.unsqueeze(0)).logits[0, -length - 1 : -1] / TEMPERATURE).log_softmax(-1)
        first_RV = first(enriched.unsqueeze(0)).logits[0, -length - 1 : -1] / TEMPERATURE if first else teacher_RV
        first_RV = first_RV.log_softmax(-1)
    ids_RK = log_probs_RV.topk(settings.top_k, dim=-1).indices
    others_RV = torch.ones_like(log_probs_RV, dtype=torch.bool).scatter(-1, ids_RK, False)

    def tail(values_RV: Tensor) -> Tensor:
        return values_RV.masked_fill(~others_RV, -torch.inf).logsumexp(-1)

    def mixed(student_RB: Tensor, teacher_RB: Tensor, _) -> Tensor:
        """T^0.7 Ref^0.3 over its sum, in probabilities."""
        first_RB = torch.cat([first_RV.gather(-1, ids_RK), tail(first_RV).unsqueeze(-1)], dim=-1)
        target_RB = teacher_RB.double().exp() ** 0.7 * first_RB.double().exp() ** 0.3
        return (target_RB / target_RB.sum(-1, keepdim=True)).log().float()

    student_RB = torch.cat([log_probs_RV.gather(-1, ids_RK), tail(log_probs_RV).unsqueeze(-1)], dim=-1)
    log_prob_R = log_probs_RV.gather(-1, row["responses"].unsqueeze(-1)).squeeze(-1)
    own = case in OWN
    old_R = log_prob_R.detach() if own else row["old_log_probs"]
    importance = (old_R - row["rollout_log_probs"]).exp().clamp(max=CAP) if own else row["rollout_is_weights"]
    gap_R = teacher_RV.gather(-1, row["responses"].unsqueeze(-1)).squeeze(-1)
    gap_R = gap_R - row["rollout_log_probs" if own else "old_log_probs"]
    advantages_R = row["advantages"]
    if case == "modulated" and row["taught"]:
        factors = [
            min(max(float((a.sign() * gap).exp()), 0.8), 1.2) for a, gap in zip(advantages_R, gap_R, strict=True)
        ]
        advantages_R = advantages_R * torch.tensor(factors)
    l_grpo, clipped, dual = clipped_policy_loss(log_prob_R, old_R, advantages_R, *CLIP)
    entropy_R = torch.special.entr(teacher_RV.double().exp()).sum(-1).float()
    weight_R = torch.exp(-settings.beta * entropy_R)
    if case == "by_place":
        weight_R = weight_R * ((torch.arange(length) + 1) / length) ** 2
    if case == "gated":
        weight_R = 1 / (1 + torch.exp(-2 * gap_R))
    if case == "fading":
        weight_R = weight_R * (1 - torch.exp(-gap_R.abs()))
    return {
        "student_RV": log_probs_RV,
        "teacher_RV": teacher_RV,
        "mask": row["response_mask"].float(),
        "l_grpo": l_grpo,
        "l_sdpo": divergence(
            student_RB,
            teacher_RV.gather(-1, ids_RK),
            settings.alpha,
            tail(teacher_RV),
            {"tempered": tempered, "mixed": mixed}.get(case),
        ),
        "importance": importance,
        "entropy": entropy_R,
        "confidence": weight_R,
        "clipped": clipped,
        "dual": dual,
        "kl": (old_R - log_prob_R).detach(),
    }
