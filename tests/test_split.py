"""Sequences split over ranks (verl's ulysses_sequence_parallel_size): loss, gradients, metrics and shown tokens are those of
whole sequences, for every method, in the teacher's pass and in the update.

torchrun groups run tests/split_process.py (FSDP2 over gloo, fp32, packed sequences, verl's own all-to-all around torch's
attention); the tests compare what they wrote with the objective on plain models, as test_engine.py does for whole sequences.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from engine_rows import CASES, SEEN_ROWS, routes
from tensordict import TensorDict
from test_engine import TIMEOUT, finish, largest_error, start, write_model

from srpo_recipe.training import fields, split, split_check
from srpo_recipe.training.split import Split, split_of

pytestmark = pytest.mark.timeout(TIMEOUT + 60)

# (ranks, ranks that split a sequence): with two each, two groups of two and four in one
KINDS = [pytest.param((2, 2), marks=pytest.mark.long), (4, 2), pytest.param((4, 4), marks=pytest.mark.long)]
PARTS = ("one", "four", "row", "dynamic")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("split"), {}
    write_model(folder / "qwen3")

    def run(kind: tuple[int, int], *more: str) -> dict:
        name = "_".join(["qwen3", *map(str, kind), *more])
        if name not in done:
            arguments = ["qwen3", str(kind[1]), *more]
            finish(folder, {f"qwen3_{kind[0]}": start(folder, kind[0], arguments, "split_process.py")})
            done[name] = torch.load(folder / f"{name}.pt", weights_only=False)
        return done[name]

    return run


def parts_of(found: dict, case: str) -> list[str]:
    return [part for part in PARTS if (case, part) in found["loss"]]


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("nothing", "mixed")])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_loss_gradients_and_metrics_are_those_of_whole_sequences(run_of, kind, case):
    found = run_of(kind)
    for part in parts_of(found, case):
        assert found["loss"][case, part] == pytest.approx(found["loss"][case, "plain"], rel=2e-6), part
        assert largest_error(found["gradient"][case, part], found["gradient"][case, "plain"]) < 1e-5, part
        metrics, expected = found["metrics"][case, part], found["means"][case, "plain"]
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6), part
    assert len(parts_of(found, case)) >= 3 and len({found["micro_batches"][case, part] for part in PARTS[:3]}) == 3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_mini_batch_on_no_route_gives_zero(run_of, kind):
    found = run_of(kind)
    for part in parts_of(found, "nothing"):
        assert found["loss"]["nothing", part] == 0.0
        gradient = found["gradient"]["nothing", part]
        assert gradient.keys() == found["gradient"]["srpo", "one"].keys()  # backward ran
        assert all(torch.equal(value, torch.zeros_like(value)) for value in gradient.values())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_response_token_has_logits_on_one_rank(run_of, kind):
    """The ranks divide the output layer's work, and count a token once."""
    found = run_of(kind)
    assert set(found["logits_made"].values()) == {found["response_tokens"]}
    assert found["metrics"]["srpo", "four"]["tokens"] == found["means"]["srpo", "plain"]["tokens"]


@pytest.mark.parametrize("case", ["srpo", "grpo", "whole", "update"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_tokens_that_are_shown_are_whole(run_of, kind, case):
    found, expected = run_of(kind)["seen"][case, "four"], run_of(kind)["seen"][case, "plain"]
    assert sorted(found) == list(SEEN_ROWS)
    for row, names in found.items():
        routed = bool(routes(case)[1][row] > 0)
        assert set(names) - {"sampler_log_prob"} >= (
            set(expected[row]) - {"sampler_log_prob"} if routed else {"log_prob"}
        )
        for name, values in names.items():
            torch.testing.assert_close(
                torch.from_numpy(values), expected[row][name], rtol=1e-4, atol=1e-5, msg=f"{row} {name}"
            )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_second_optimiser_step_and_the_ema_are_those_of_whole_sequences(run_of, kind):
    found = run_of(kind)
    assert found["loss"]["srpo", "second step"] == pytest.approx(found["loss"]["srpo", "second step, plain"], rel=1e-5)
    pair = (found["gradient"]["srpo", name] for name in ("second step", "second step, plain"))
    assert largest_error(*pair) < 1e-4
    for name, weights in found["recursion"].items():
        torch.testing.assert_close(found["teacher"][name].double(), weights, rtol=0, atol=1e-6)
        assert torch.equal(found["loaded"][name], found["teacher"][name])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_verls_own_pass_gives_the_log_probs_of_whole_sequences(run_of, kind):
    """The log-prob pass before an update of several optimiser steps."""
    for found, expected in zip(*run_of(kind)["log_probs"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_that_sees_one_slice_alone_ends_the_run(run_of, kind):
    """transformers' sdpa, which verl does not split: nothing would fail, and the loss would be another."""
    found = run_of(kind)
    assert found["same when split"] < 1e-5
    assert "Qwen3ForCausalLM does not compute the same" in found["refused"]
    assert "attn_implementation=sdpa" in found["refused"] and "ulysses_sequence_parallel_size=1" in found["refused"]


@pytest.mark.long
@pytest.mark.parametrize("case", ["srpo", "grpo", "whole"])
def test_weights_that_are_there_twice_take_split_sequences(run_of, case):
    found = run_of((4, 2), "hybrid")
    for part in parts_of(found, case):
        assert found["loss"][case, part] == pytest.approx(found["loss"][case, "plain"], rel=2e-6), part
        assert largest_error(found["gradient"][case, part], found["gradient"][case, "plain"]) < 1e-5, part


@pytest.mark.long
@pytest.mark.parametrize("kind", [(2, 2), (4, 2)], ids=str)
@pytest.mark.parametrize("case", ["srpo", "sdpo", "mixed"])
def test_adapters_take_split_sequences(run_of, kind, case):
    found = run_of(kind, "lora")
    for part in ("one", "four", "row"):
        assert found["loss"][case, part] == pytest.approx(found["loss"][case, "plain"], abs=2e-5)
        gradient = {name: value for name, value in found["gradient"][case, part].items() if ".lora_" in name}
        assert largest_error(gradient, found["gradient"][case, "plain"]) < 2e-4


@pytest.mark.long
@pytest.mark.parametrize("case", ["srpo", "whole"])
def test_bf16_loses_nothing_more_when_sequences_are_split(run_of, case):
    found, whole = run_of((2, 2), "bf16"), run_of((1, 1), "bf16")
    for part in parts_of(found, case):
        assert found["loss"][case, part] == pytest.approx(whole["loss"][case, part], rel=1e-3)
        pairs = [(value, whole["gradient"][case, part][name]) for name, value in found["gradient"][case, part].items()]
        off = sum(float((one - other).square().sum()) for one, other in pairs)
        assert off < 0.01**2 * sum(float(other.square().sum()) for _, other in pairs)
    assert found["same when split"] < 0.02 and "does not compute the same" in found["refused"]


def test_a_model_with_a_part_for_images_is_refused():
    module = SimpleNamespace(config=SimpleNamespace(vision_config={}))
    with pytest.raises(NotImplementedError, match="(?s)has a part for images.*ulysses_sequence_parallel_size=1"):
        split_check.refuse_images(module)
    module.config = SimpleNamespace()
    split_check.refuse_images(module)


# ------------------------------------------------------------------------------------------- the split itself, by hand


def rank_of(monkeypatch, ranks: int, rank: int) -> None:
    monkeypatch.setattr(split, "dist", SimpleNamespace(get_rank=lambda _: rank, get_world_size=lambda _: ranks))


def batch_of(prompts: list[int], responses: list[int]) -> TensorDict:
    lengths = {"prompts": prompts, "responses": responses}
    lengths["input_ids"] = [a + b for a, b in zip(prompts, responses, strict=True)]
    columns = {key: fields.jagged([torch.zeros(n, dtype=torch.long) for n in rows]) for key, rows in lengths.items()}
    return TensorDict(columns, batch_size=len(prompts))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_parts_of_the_ranks_are_all_response_tokens_in_order(monkeypatch, ranks, seed):
    dice = random.Random(seed)
    prompts, responses = ([dice.randint(1, 9) for _ in range(4)] for _ in range(2))
    rows, start = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        rows += range(start + prompt - 1, start + prompt + response - 1)
        start += prompt + response
    width, found, taken, of_rows = -(-start // ranks), [], [True, False, True, False], []
    for rank in range(ranks):
        rank_of(monkeypatch, ranks, rank)
        places, part = split_of(batch_of(prompts, responses), torch.zeros(1, width), "a group")
        found += (places + rank * width).tolist()
        assert all(0 <= place < width for place in places.tolist())
        assert sum(part.own_lengths) == len(places) and part.lengths == tuple(responses)
        of_rows += [sum(n for n, wanted in zip(part.own_lengths, taken, strict=True) if wanted)]
        own = part.of(taken).own
        assert own.stop - own.start == of_rows[-1] and own.start == sum(of_rows[:-1])
    assert found == rows


def test_padded_rows_are_found_by_their_width():
    batch = batch_of([2, 3], [4, 1])
    batch.set_non_tensor("use_remove_padding", False)
    places, part = split_of(batch, torch.zeros(2, 7), None)
    assert places.tolist() == [1, 2, 3, 4, 9] and part == Split.whole([4, 1])


@pytest.mark.parametrize("seed", range(5))
def test_each_rank_fetches_its_part_of_rows_that_lie_otherwise(monkeypatch, seed):
    dice, ranks = random.Random(seed), 3
    lengths = [dice.randint(1, 9) for _ in range(4)]
    total, rows = sum(lengths), torch.arange(sum(lengths)).split(lengths)

    def cut() -> Split:
        ends = [0, *sorted(dice.randint(0, total) for _ in range(ranks - 1)), total]
        return Split(tuple(lengths), tuple(zip(ends[:-1], ends[1:], strict=True)), "a group")

    held, wanted, sent = cut(), cut(), {}

    def exchange(incoming, outgoing, got, given, group):
        sent[rank] = outgoing.split(given)
        if len(sent) == ranks:  # asked a second time: everything is there
            incoming.copy_(torch.cat([sent[giver][rank] for giver in range(ranks)]))

    for rank in [*range(ranks), *range(ranks)]:
        rank_of(monkeypatch, ranks, rank)
        split.dist.all_to_all_single = exchange
        parts = [row[part.own] for row, part in zip(rows, held.rows, strict=True)]
        found = wanted.fetch(parts, held.rows)
        if len(sent) == ranks:
            assert rank == 2 or found.tolist() == list(range(total))[wanted.own]
