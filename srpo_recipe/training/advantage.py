"""The group-relative advantage under verl's own name."""

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from srpo_recipe.method.grpo import group_advantages


@register_adv_est("srpo")
def srpo_advantage(token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config=None, **_):
    """grpo.group_advantages: reward of a rollout minus its group's mean, on each of its tokens.

    token_level_rewards, response_mask: [B, T]; index: the prompt's uid of each rollout; config: algorithm section, whose
    norm_adv_by_std_in_grpo asks for the division by the standard deviation. Returns (advantages, returns), both [B, T].
    """
    _, group = np.unique(np.asarray(index).astype(str), return_inverse=True)
    by_std = bool(config.get("norm_adv_by_std_in_grpo", False)) if config is not None else False
    advantage_B = group_advantages(token_level_rewards.sum(-1), torch.from_numpy(group), normalize_by_std=by_std)
    advantage_BT = advantage_B.unsqueeze(-1) * response_mask
    return advantage_BT, advantage_BT
