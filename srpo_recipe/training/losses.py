"""The loss of an update, under the names by which verl finds it: method/loss.py on verl's fields."""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig

from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.loss import Totals, count_totals, routed_loss
from srpo_recipe.method.student_head import Gradients
from srpo_recipe.settings.options import at
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.training.fields import IMPORTANCE_CAP, NO_CAP, TOTALS, MicroBatch
from srpo_recipe.training.loss_metrics import as_verls, loss_metrics, sampled_metrics
from srpo_recipe.training.seen import SeenTokens
from srpo_recipe.training.teacher_states import Taught


@dataclass(frozen=True)
class Routed:
    """What the routed loss takes beside a policy loss's own arguments; the names are those of `method.loss.routed_loss`."""

    policy_B: Tensor
    distill_B: Tensor
    divergence_BT: Tensor
    entropy_BT: Tensor
    confidence_BT: Tensor
    totals: Totals
    average: str

    @classmethod
    def grpo(cls, mask_BT: Tensor, tokens: float | None) -> "Routed":
        """Every row on the GRPO route, which is what a policy loss without these arguments means. tokens: of the mini-batch,
        None where this is all of it.
        """
        ones_B, zeros_BT = (
            torch.ones(len(mask_BT), device=mask_BT.device),
            torch.zeros_like(mask_BT, dtype=torch.float32),
        )
        counted = count_totals(mask_BT, ones_B, torch.zeros_like(ones_B), zeros_BT)
        if tokens is not None:
            counted[:2] = tokens
        totals = Totals.from_tensor(counted)
        return cls(ones_B, torch.zeros_like(ones_B), zeros_BT, zeros_BT, zeros_BT, totals, "token")


@register_policy_loss("srpo")
def srpo_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig = None,
    rollout_is_weights: Tensor | None = None,
    routed: Routed | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The one loss of the method for a micro-batch, under verl's own name (paper, section 3.3).

    All tensors [B, T]; the first seven arguments are verl's. routed: `update_loss` gives it; without it every row is on the
    GRPO route. loss_agg_mode is verl's argument and without effect: routed.average decides. verl averages gradients over the
    ranks, hence the factor dp_size. Returns the loss and its metrics, shares that add up over micro-batches and ranks.
    """
    mask_BT = response_mask.bool()
    info = config.global_batch_info
    dp_size = info.get("dp_size", 1)
    routed = routed or Routed.grpo(mask_BT, info.get("batch_num_tokens"))
    importance_BT = torch.ones_like(log_prob) if rollout_is_weights is None else rollout_is_weights
    clip = config.clip_ratio_low, config.clip_ratio_high, config.get("clip_ratio_c", 3.0)
    policy_loss_BT, clipped_BT, dual_BT = clipped_policy_loss(log_prob, old_log_prob, advantages, *clip)
    policy, distill = routed_loss(
        policy_loss_BT,
        routed.divergence_BT,
        mask_BT,
        routed.policy_B,
        routed.distill_B,
        routed.confidence_BT,
        importance_BT,
        routed.totals,
        routed.average,
    )
    policy_means = {
        "clip_fraction": clipped_BT,
        "dual_clip_fraction": dual_BT,
        "approx_kl": (old_log_prob - log_prob).detach(),
    }
    parts = {"pg_loss": policy * dp_size, "distill/loss": distill * dp_size}
    metrics = loss_metrics(mask_BT, routed, importance_BT, policy_means, dp_size)
    metrics |= {name: part.item() for name, part in parts.items()}
    return (policy + distill) * dp_size, metrics


def update_loss(
    config: ActorConfig,
    srpo: SRPOConfig,
    model_output: dict,
    data: TensorDict,
    dp_group=None,
    seen: SeenTokens | None = None,
) -> tuple[Tensor, dict]:
    """verl's loss function of one micro-batch of an update: its fields as [B, T], then the registered policy loss.

    model_output: from RoutedEngine, the log-prob of each response token [N], divergence, teacher entropy and gap of the routed
    rows' tokens [M]. data: verl's micro-batch with the fields of fields.py; the sums over the whole mini-batch are data[TOTALS].
    seen: keeps the tokens of the rows that the trainer wants to see.
    """
    view = MicroBatch.of(data)
    log_prob_BT = view.spread(model_output["log_probs"])
    entropy_BT, gap_BT = (view.spread_routed(model_output[f"teacher_{name}"]) for name in ("entropy", "gap"))
    advantages_BT = at(srpo, "advantage")(view.padded("advantages"), gap_BT)
    routed = Routed(
        policy_B=view.policy_B,
        distill_B=view.distill_B,
        divergence_BT=view.spread_routed(model_output["divergence"]),
        entropy_BT=entropy_BT,
        confidence_BT=token_weight(srpo, view, entropy_BT, gap_BT),
        totals=Totals(*data[TOTALS]),
        average=srpo.average,
    )
    sampled: dict[str, Tensor] = {}
    if "old_log_probs" in data:
        old_log_prob_BT = view.padded("old_log_probs")
        importance_BT = view.padded("rollout_is_weights") if "rollout_is_weights" in data else None
    else:
        old_log_prob_BT = log_prob_BT.detach()
        importance_BT, sampled = _against_rollout(view, old_log_prob_BT)
    if seen is not None:
        _show(seen, view, routed, log_prob_BT, advantages_BT, model_output)
    config.global_batch_info.update(dp_size=data["dp_size"], batch_num_tokens=data["batch_num_tokens"])
    loss, metrics = get_policy_loss_fn(config.policy_loss.loss_mode)(
        old_log_prob=old_log_prob_BT,
        log_prob=log_prob_BT,
        advantages=advantages_BT,
        response_mask=view.mask_BT,
        loss_agg_mode=config.loss_agg_mode,
        config=config,
        rollout_is_weights=importance_BT,
        routed=routed,
    )
    metrics = metrics | sampled_metrics(view.mask_BT, routed, sampled, data["dp_size"])
    return loss, as_verls(metrics)


def token_weight(srpo: SRPOConfig, view: MicroBatch, entropy_BT: Tensor, gap_BT: Tensor) -> Tensor:
    """w~ [B, T] of the tokens of a batch, before its mean is divided out. entropy_BT, gap_BT: of `Taught`, laid out."""
    length_BT = view.length_B.unsqueeze(-1).expand_as(view.place_BT)
    return at(srpo, "weight")(entropy_BT, gap_BT, view.place_BT, length_BT, srpo.beta)


def token_gradients(config: ActorConfig, srpo: SRPOConfig, data: TensorDict, taught: Taught) -> Gradients:
    """`update_loss`, token by token: what a pass over the output layer is told (method/student_head.py).

    config, srpo, data: as there; taught: of the routed rows' tokens.
    """
    view, totals = MicroBatch.of(data), Totals(*data[TOTALS])
    mask_N, length_B = data["response_mask"].values().bool(), view.length_B
    policy_N, distill_N = (part_B.repeat_interleave(length_B) for part_B in (view.policy_B, view.distill_B))
    entropy_BT, gap_BT = (view.spread_routed(part_M) for part_M in taught)
    confidence_N = view.gathered(token_weight(srpo, view, entropy_BT, gap_BT))
    share_N = torch.ones_like(policy_N)
    if srpo.average == "sequence":  # a token's share of its rollout, and a rollout's of them all
        share_N, totals = share_N / view.mask_BT.sum(-1).clamp(min=1).repeat_interleave(length_B), totals.over_rows()
    advantage_N = view.gathered(at(srpo, "advantage")(view.padded("advantages"), gap_BT))
    clip = config.clip_ratio_low, config.clip_ratio_high, config.get("clip_ratio_c", 3.0)

    def gradients(place: slice, log_prob_C: Tensor, divergence_C: Tensor) -> tuple[Tensor, Tensor]:
        old_C, importance_C = _old_policy(data, place, log_prob_C, mask_N[place])
        with torch.enable_grad():
            log_prob_C, divergence_C = log_prob_C.detach().requires_grad_(), divergence_C.detach().requires_grad_()
            policy_loss_C, _, _ = clipped_policy_loss(log_prob_C, old_C, advantage_N[place], *clip)
            # each token is a rollout of its own here
            parts = routed_loss(
                policy_loss_C.unsqueeze(-1),
                divergence_C.unsqueeze(-1),
                mask_N[place].unsqueeze(-1),
                policy_N[place],
                distill_N[place],
                confidence_N[place].unsqueeze(-1),
                (importance_C * share_N[place]).unsqueeze(-1),
                totals,
            )
            return torch.autograd.grad(sum(parts) * data["dp_size"], (log_prob_C, divergence_C))

    return gradients


def _old_policy(data: TensorDict, place: slice, log_prob_C: Tensor, mask_C: Tensor) -> tuple[Tensor, Tensor]:
    """(log-prob under the old policy, rollout correction) of the tokens at a place, as `update_loss` has them."""
    ones_C = torch.ones_like(log_prob_C)
    if "old_log_probs" in data:
        weights = data["rollout_is_weights"].values()[place] if "rollout_is_weights" in data else ones_C
        return data["old_log_probs"].values()[place], weights
    if "rollout_log_probs" not in data:
        return log_prob_C, ones_C
    rollout_C = data["rollout_log_probs"].values()[place]
    found = _correction(data, log_prob_C.unsqueeze(0), rollout_C.unsqueeze(0), mask_C.unsqueeze(0))
    return log_prob_C, ones_C if found is None else found.squeeze(0)


def _show(
    seen: SeenTokens,
    view: MicroBatch,
    routed: Routed,
    log_prob_BT: Tensor,
    advantages_BT: Tensor,
    model_output: dict,
) -> None:
    """Give `seen` what records/samples.py has a column for."""
    numbers = {"log_prob": log_prob_BT, "advantage": advantages_BT, "counted": view.mask_BT}
    if "rollout_log_probs" in view.data:
        numbers["sampler_log_prob"] = view.padded("rollout_log_probs")
    of_routed = {
        "teacher_entropy": routed.entropy_BT,
        "weight": routed.confidence_BT / routed.totals.mean_confidence,
        "divergence": routed.divergence_BT,
    }
    seen.keep(view, numbers, of_routed, (model_output["words"], model_output["word_log_probs"]))


def _against_rollout(view: MicroBatch, old_log_prob_BT: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """With one optimiser step a batch the old policy is the current one: the rollout correction of its log-probs.

    Returns the weights (None for none) and what the log shows of the sampled tokens, [B, T] each: minus the log-prob, whose
    mean estimates the entropy, and how far off the rollout engine was.
    """
    sampled = {"entropy_of_samples": -old_log_prob_BT}
    if "rollout_log_probs" not in view.data:
        return None, sampled
    rollout_BT = view.padded("rollout_log_probs")
    sampled["rollout_probs_diff"] = (old_log_prob_BT.exp() - rollout_BT.exp()).abs()
    return _correction(view.data, old_log_prob_BT, rollout_BT, view.mask_BT), sampled


def _correction(data: TensorDict, old_log_prob: Tensor, rollout_log_prob: Tensor, mask: Tensor) -> Tensor | None:
    """verl's weights of the tokens, [B, T] as its arguments, None for none."""
    cap = tu.get_non_tensor_data(data, IMPORTANCE_CAP, None)
    if cap is None:
        raise KeyError(f"the trainer has not said how far the rollout correction goes ({IMPORTANCE_CAP})")
    if cap == NO_CAP or not mask.any():  # verl's function refuses a micro-batch of padding alone
        return None
    weights, _ = compute_rollout_correction_weights(old_log_prob - rollout_log_prob, mask.long(), "token", cap)
    return weights
