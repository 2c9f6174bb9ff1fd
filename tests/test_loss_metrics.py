"""What the log shows of several optimiser steps a batch, and the self-check of the teacher's kept states."""

import numpy as np
import pytest
import torch
from verl.utils.metric import reduce_metrics

from srpo_recipe.method.teacher_logits import OutputLayer
from srpo_recipe.training.loss_metrics import over_steps
from srpo_recipe.training.split import Split
from srpo_recipe.training.teacher_states import TeacherStates, probed


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
        "tokens": [30.0, 0.0, 30.0, 20.0],
        "policy/importance": [1.1, 0.0, 1.3, 1.2],
        "distill/token_share": [1.0, 0.0, 1 / 3, 1.0],
        "loss": [1.0, 2.0, 3.0, 4.0],
    }
    found = reduce_metrics(over_steps(steps))
    assert found["distill/weight_mean"] == pytest.approx(1.0)
    assert found["distill/weight_square"] == pytest.approx((1.2 * 30 + 1.0 * 10 + 1.1 * 20) / 60)
    assert found["distill/weight_largest"] == 3.0
    assert found["policy/clip_fraction"] == pytest.approx((0.2 * 10 + 0.4 * 30) / 40)
    assert found["policy/importance"] == pytest.approx((1.1 * 30 + 1.3 * 30 + 1.2 * 20) / 80)
    assert found["distill/token_share"] == pytest.approx(60 / 80)
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
    keep(states, [3, 5], [4, 3], hidden_NH, logits_NV, temperature=0.7, chunk_tokens=4)
    return states, OutputLayer(weight_VH)


def keep(states: TeacherStates, rows, lengths, hidden_NH, logits_NV, **options) -> None:
    """As a teacher's pass over all logits at once does."""
    place = probed(len(logits_NV))
    states.probe(hidden_NH[place], logits_NV[place], **options)
    blocks = [(slice(0, 3), logits_NV[:3]), (slice(3, None), logits_NV[3:])]
    states.keep(rows, Split.whole(lengths), hidden_NH, blocks, **options)


def test_kept_states_give_the_teachers_log_probs_and_entropy():
    states, layer = kept(lambda logits: logits)
    states.close(layer, "Model")
    rows, ids_MK = [5, 3], torch.randint(60, (7, 9), generator=torch.Generator().manual_seed(1))
    hidden_NH = torch.cat([states.kept[row][0] for row in rows])
    expected_NV = (hidden_NH.double() @ layer.weight_VH.double().T / 0.7).log_softmax(-1)
    found_MK = states.tokens_of(rows).log_probs(slice(0, None), ids_MK, temperature=0.7, chunk_tokens=2)
    torch.testing.assert_close(found_MK.double(), expected_NV.gather(-1, ids_MK), rtol=0, atol=1e-5)
    entropy = torch.special.entr(expected_NV.exp()).sum(-1)
    torch.testing.assert_close(states.entropy(rows, torch.device("cpu")).double(), entropy, rtol=0, atol=1e-5)
    states.clear()
    assert not states.kept and states.layer is None


@pytest.mark.parametrize("after", [lambda z: z / 8, lambda z: 3 * torch.tanh(z / 3), lambda z: z + 0.5])
def test_a_layer_that_is_not_the_models_own_ends_the_run_with_the_reason(after):
    states, layer = kept(after)
    with pytest.raises(
        RuntimeError, match="(?s)logits of GraniteForCausalLM cannot be made again.*method=grpo srpo.logits_rows=null"
    ):
        states.close(layer, "GraniteForCausalLM")
    states, layer = kept(after)
    states.close(layer._replace(after=after), "GraniteForCausalLM")


def test_the_self_check_runs_once():
    states, layer = kept(lambda logits: logits)
    states.close(layer, "Model")
    states.clear()
    keep(states, [1], [7], torch.randn(7, 16), torch.randn(7, 60), temperature=1.0, chunk_tokens=4)
    states.close(layer, "Model")  # what does not fit together is not looked at again


def test_the_teachers_tail_is_summed_over_the_other_words():
    states, layer = kept(lambda logits: logits)
    states.close(layer, "Model")
    ids_MK = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(row))[:9] for row in range(7)])
    hidden_NH = torch.cat([states.kept[row][0] for row in (5, 3)])
    expected_NV = (hidden_NH.double() @ layer.weight_VH.double().T / 0.7).softmax(-1)
    found_M = states.tokens_of([5, 3]).log_tail(slice(0, None), ids_MK, temperature=0.7, chunk_tokens=2)
    expected_M = expected_NV.scatter(-1, ids_MK, 0.0).sum(-1).log()
    torch.testing.assert_close(found_M.double(), expected_M, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_self_check_allows_rounding_in_bf16_and_no_more(seed):
    generator = torch.Generator().manual_seed(seed)
    hidden_NH, weight_VH = torch.randn(40, 512, generator=generator), torch.randn(3000, 512, generator=generator) / 8
    hidden_NH, weight_VH = hidden_NH.bfloat16(), weight_VH.bfloat16()
    exact_NV = hidden_NH.double() @ weight_VH.double().T
    noise_NV = torch.rand(exact_NV.shape, generator=generator) - 0.5
    # another order of summation: a few numbers in a hundred are rounded to their other neighbour
    rounded_NV = (exact_NV * (1 + noise_NV * 2.0**-14)).bfloat16()
    for after, passes in ((lambda z: z, True), (lambda z: z * 1.02, False), (lambda z: 50 * torch.tanh(z / 50), False)):
        states = TeacherStates()
        keep(states, [0], [40], hidden_NH, after(rounded_NV.float()).bfloat16(), temperature=1.0, chunk_tokens=8)
        if passes:
            assert not torch.equal(rounded_NV, exact_NV.bfloat16())
            states.close(OutputLayer(weight_VH), "Model")
        else:
            with pytest.raises(RuntimeError, match="cannot be made again"):
                states.close(OutputLayer(weight_VH), "Model")


def test_a_weight_of_ones_own_gets_the_lengths_as_rows_of_tokens(tmp_path):
    """A function that stacks or masks its arguments met [B, 1] beside [B, T]."""
    from types import SimpleNamespace

    from srpo_recipe.settings.schema import SRPOConfig
    from srpo_recipe.training.losses import token_weight

    (tmp_path / "mine.py").write_text(
        "import torch\ndef mean(entropy, length):\n    return torch.stack([entropy, length.float()]).mean(0)\n"
    )
    view = SimpleNamespace(length_B=torch.tensor([2, 4]), place_BT=torch.arange(4).expand(2, 4))
    entropy_BT = torch.ones(2, 4)
    found_BT = token_weight(SRPOConfig(weight=f"{tmp_path}/mine.py:mean"), view, entropy_BT, entropy_BT)
    assert found_BT.tolist() == [[1.5] * 4, [2.5] * 4]


def test_the_gap_is_made_where_the_teachers_states_are():
    """A mini-batch is counted before verl moves it: on a GPU its tokens lie on the host and the states do not. Here "meta" is the
    device.
    """
    from types import SimpleNamespace

    from srpo_recipe.settings.schema import SRPOConfig
    from srpo_recipe.training.fields import TEACHER_ROW, MicroBatch, jagged
    from srpo_recipe.training.passes import NamedPasses

    def log_probs(place, ids_CK, **options):
        assert ids_CK.device.type == "meta"
        return torch.zeros(ids_CK.shape, device="meta")

    tokens = SimpleNamespace(
        hidden_MH=torch.empty(3, 4, device="meta"),
        layer=SimpleNamespace(weight_VH=torch.empty(9, 4, device="meta")),
        log_probs=log_probs,
    )
    states = SimpleNamespace(
        entropy=lambda rows, device: torch.ones(3, device="meta"), tokens_of=lambda rows, split: tokens
    )
    engine = SimpleNamespace(
        teacher=SimpleNamespace(states=states),
        srpo=SRPOConfig(weight="gated"),
        ulysses_parallel_group=None,
        _options=lambda *_: {},
    )
    data = {
        "responses": jagged([torch.tensor([5, 6]), torch.tensor([7, 8, 8])]),
        "rollout_log_probs": jagged([torch.zeros(2), torch.ones(3)]),
        TEACHER_ROW: torch.tensor([-1, 0]),
    }
    mask_BT, distill_B = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(), torch.tensor([0.0, 1.0])
    view = MicroBatch(data, torch.tensor([2, 3]), mask_BT, 1 - distill_B, distill_B)
    taught = NamedPasses._taught(engine, view)
    assert taught.gap_M.device.type == "meta" and taught.gap_M.shape == (3,)
