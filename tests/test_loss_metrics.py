"""What the log shows of several optimiser steps a batch, and the self-check of the teacher's kept states."""

import numpy as np
import pytest
import torch
from verl.utils.metric import reduce_metrics

from srpo_recipe.method.teacher_logits import OutputLayer
from srpo_recipe.training.loss_metrics import over_steps
from srpo_recipe.training.teacher_states import TeacherStates


def test_means_over_distilled_tokens_are_weighted_by_them():
    """Four steps, one of which distilled nothing: the mean weight is 1, not 0.75."""
    steps = {
        "distill/tokens": [30.0, 0.0, 10.0, 20.0],
        "distill/weight_mean": [1.0, 0.0, 1.0, 1.0],
        "distill/weight_square": [1.2, 0.0, 1.0, 1.1],
        "distill/weight_largest": [1.5, 0.0, 3.0, 1.1],
        "distill/loss": [0.1, 0.0, 0.2, 0.1],
        "policy/tokens": [0.0, 10.0, 30.0, 0.0],
        "policy/clip_fraction": [0.0, 0.2, 0.4, 0.0],
        "loss": [1.0, 2.0, 3.0, 4.0],
    }
    found = reduce_metrics(over_steps(steps))
    assert found["distill/weight_mean"] == pytest.approx(1.0)
    assert found["distill/weight_square"] == pytest.approx((1.2 * 30 + 1.0 * 10 + 1.1 * 20) / 60)
    assert found["distill/weight_largest"] == 3.0
    assert found["policy/clip_fraction"] == pytest.approx((0.2 * 10 + 0.4 * 30) / 40)
    assert found["distill/loss"] == pytest.approx(np.mean(steps["distill/loss"])) and found["loss"] == 2.5


def test_a_mean_over_no_token_is_not_logged():
    steps = {"distill/tokens": [0.0, 0.0], "policy/tokens": [5.0, 5.0]}
    steps |= {"distill/weight_mean": [0.0, 0.0], "distill/weight_largest": [0.0, 0.0], "policy/approx_kl": [0.1, 0.3]}
    found = over_steps(steps)
    assert "distill/weight_mean" not in found and "distill/weight_largest" not in found
    assert found["policy/approx_kl"] == pytest.approx([0.2])


def kept(after) -> tuple[TeacherStates, OutputLayer]:
    """States of two rows of a model with a bias and `after` behind its output layer, and that layer without them."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH, weight_VH = torch.randn(7, 16, generator=generator), torch.randn(60, 16, generator=generator)
    states = TeacherStates()
    logits_NV = after(hidden_NH @ weight_VH.T)
    states.keep([3, 5], [4, 3], hidden_NH, logits_NV, temperature=0.7, chunk_tokens=4)
    return states, OutputLayer(weight_VH)


def test_kept_states_give_the_teachers_log_probs_and_entropy():
    states, layer = kept(lambda logits: logits)
    states.close(layer, "Model")
    rows, ids_MK = [5, 3], torch.randint(60, (7, 9), generator=torch.Generator().manual_seed(1))
    hidden_NH = torch.cat([states.kept[row][0] for row in rows])
    expected_NV = (hidden_NH.double() @ layer.weight_VH.double().T / 0.7).log_softmax(-1)
    found_MK = states.log_probs(rows, ids_MK, temperature=0.7, chunk_tokens=2)
    torch.testing.assert_close(found_MK.double(), expected_NV.gather(-1, ids_MK), rtol=0, atol=1e-5)
    entropy = torch.special.entr(expected_NV.exp()).sum(-1)
    torch.testing.assert_close(states.entropy(rows, torch.device("cpu")).double(), entropy, rtol=0, atol=1e-5)
    states.clear()
    assert not states.kept and states.layer is None


@pytest.mark.parametrize("after", [lambda z: z / 8, lambda z: 3 * torch.tanh(z / 3), lambda z: z + 0.5])
def test_a_layer_that_is_not_the_models_own_ends_the_run_with_the_reason(after):
    states, layer = kept(after)
    with pytest.raises(
        RuntimeError, match="(?s)self-teacher of GraniteForCausalLM cannot be scored.*method=grpo needs no"
    ):
        states.close(layer, "GraniteForCausalLM")
    states, layer = kept(after)
    states.close(layer._replace(after=after), "GraniteForCausalLM")


def test_the_self_check_runs_once():
    states, layer = kept(lambda logits: logits)
    states.close(layer, "Model")
    states.clear()
    states.keep([1], [7], torch.randn(7, 16), torch.randn(7, 60), temperature=1.0, chunk_tokens=4)
    states.close(layer, "Model")  # what does not fit together is not looked at again
