"""The trainer's side of the self-teacher's pass: which rank scores what, and the call to the workers."""

from collections.abc import Collection, Sequence

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from srpo_recipe.method.decision import Decision
from srpo_recipe.training.balance import by_rank
from srpo_recipe.training.fields import DISTILL, SEEN, TEACHER_ROW, jagged


def score(
    workers,
    decision: Decision,
    ranks: int,
    filler: int,
    temperature: float,
    token_budget: int,
    split: int = 1,
    seen: Collection[int] = (),
) -> int:
    """Have every rank score the routed rows that it will update. Returns the number of rows forwarded, padding included.

    They go straight to the workers, as many to every rank; what is missing is filled up with rows of two `filler` tokens.
    token_budget: a rank's in a forward pass, raised to the longest row; split: ranks that have a slice each of a row; seen: rows
    whose tokens the trainer wants to see.
    """
    rows = list(decision.prompts)
    shares = by_rank(rows, len(decision.correct_B), ranks)
    data = teacher_batch(decision, [place for share in shares for place in share], filler, seen)
    longest = int(data["input_ids"].offsets().diff().max())
    tu.assign_non_tensor(
        data,
        temperature=temperature,
        calculate_entropy=False,
        use_dynamic_bsz=True,
        max_token_len_per_gpu=max(token_budget, -(-longest // split)),
    )
    workers.compute_teacher(data)
    return len(data)


def teacher_batch(
    decision: Decision, places: Sequence[int | None], filler: int, seen: Collection[int] = ()
) -> TensorDict:
    """verl's fields of the routed rows under the teacher's prompts, in the order of `places`; None is a row of padding."""
    rows = list(decision.prompts)
    prompts, responses = [], []
    for place in places:
        ids = [filler] if place is None else decision.prompts[rows[place]].ids
        prompts.append(torch.tensor(ids))
        responses.append(torch.tensor([filler]) if place is None else decision.rollouts.responses[rows[place]])
    full = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    mask = jagged([torch.ones_like(response) for response in responses])
    fields = {
        "input_ids": jagged(full),
        "position_ids": jagged([torch.arange(len(ids)) for ids in full]),
        "prompts": jagged(prompts),
        "responses": jagged(responses),
        "response_mask": mask,
        "loss_mask": mask,
        DISTILL: torch.ones(len(places)),
        TEACHER_ROW: torch.tensor([-1 if place is None else place for place in places]),
        SEEN: torch.tensor([-1 if place is None or rows[place] not in seen else rows[place] for place in places]),
    }
    return TensorDict(fields, batch_size=len(places))
