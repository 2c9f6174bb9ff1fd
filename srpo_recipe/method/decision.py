"""What each rollout of a batch learns from: verified rollouts in, one frozen decision out (paper, sections 3.1 and 3.2).

The teacher's prompts are written first, for the rows that the rule would send to a teacher. A prompt that does not fit its
budget is simply no teacher, and the routing table is asked once, with the teachers that there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srpo_recipe.method.demonstrations import REFERENCE, Choice, choose_demonstrations, has_success
from srpo_recipe.method.route import Route, RouteRule, route_samples
from srpo_recipe.method.seeds import checksum
from srpo_recipe.method.self_teacher import StudentChat, TeacherPrompt, TeacherPromptBuilder, strip_thinking
from srpo_recipe.method.weights import alike, normalised


@dataclass(frozen=True)
class Rollouts:
    """The verified rollouts of a batch, in one order of its rows.

    index_B: number of the prompt in the data; session_B: number of the rollout in its group; group_B: int64, a label that
    the rollouts of one prompt share; reward_B: float32, from the verifier; real_B: bool, False for rows that only fill up
    the batch; responses: token ids; chats: what the students' prompts were rendered from; feedback: the verifier's text, or
    None; output_B: number of the row in its rollout, where an agent loop made several of one, None for one row each; reference:
    the data's own solution of the prompt, None for none. Rows of one rollout share index, session, group and reward.
    """

    index_B: Tensor
    session_B: Tensor
    group_B: Tensor
    reward_B: Tensor
    real_B: Tensor
    responses: Sequence[Tensor]
    chats: Sequence[StudentChat]
    feedback: Sequence[str | None]
    output_B: Tensor | None = None
    reference: Sequence[str | None] | None = None

    @property
    def last_B(self) -> Tensor:
        """bool: the last row of its rollout, the one that was verified."""
        if self.output_B is None:
            return torch.ones_like(self.real_B)
        rollout_B = torch.unique(torch.stack([self.group_B, self.session_B], dim=-1), dim=0, return_inverse=True)[1]
        last_X = torch.zeros(len(rollout_B), dtype=torch.long).scatter_reduce_(0, rollout_B, self.output_B, "amax")
        return self.output_B == last_X[rollout_B]

    @property
    def length_B(self) -> Tensor:
        """Response tokens of each rollout."""
        return torch.tensor([len(ids) for ids in self.responses], dtype=torch.long)

    def reordered(self, order: Sequence[int]) -> "Rollouts":
        """The same rollouts, row order[0] first."""
        columns: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: _reordered(given, order) for name, given in columns.items() if given is not None})


@dataclass(frozen=True)
class Routing:
    """What a decision depends on besides the rollouts.

    rule: one of route.ROUTE_RULES, or a function like them. correct_threshold: a rollout is correct from this reward on. mix:
    lambda of Advantage Mix. demonstration: one of demonstrations.DEMONSTRATION_CHOICES, a function like them, or REFERENCE.
    seed: of the choice among siblings. feedback: "off", "append" (after the demonstration) or "replace" (instead of it).
    overflow: "shorten" the demonstration, or "reroute", which takes a prompt that had to be shortened for one that does not fit.
    context: the model's positions, which the teacher's prompt and the response share; None for no limit. row_weight: of
    weights.py, a factor of each row's route weights. ask_all: the teacher scores every row that has one, also where the rule
    gives it no distillation part: for an advantage that asks what the teacher thinks.
    """

    rule: str | RouteRule
    correct_threshold: float
    mix: float
    demonstration: str | Choice
    feedback: str
    overflow: str
    seed: int
    context: int | None
    row_weight: Callable[[Tensor, Tensor, Tensor], Tensor] = alike
    ask_all: bool = False


@dataclass(frozen=True)
class Decision:
    """What each of B rollouts learns from.

    correct_B, teacher_B: bool, c_i and m_i, a teacher whose prompt does not fit left out; route: weights of the two parts
    of the loss; prompts: row -> the teacher's prompt, for the rows that it scores; siblings: row -> the row of the rollout
    shown there, for those of them that are shown one; rerouted: rows that lost their teacher since its prompt does not fit.
    """

    rollouts: Rollouts
    correct_B: Tensor
    teacher_B: Tensor
    route: Route
    prompts: Mapping[int, TeacherPrompt]
    siblings: Mapping[int, int]
    rerouted: int

    @property
    def shortened(self) -> int:
        """Prompts whose demonstration was cut to fit."""
        return sum(prompt.shortened for prompt in self.prompts.values())

    @property
    def demonstration_lengths(self) -> list[int]:
        """Response tokens of the siblings shown."""
        return [len(self.rollouts.responses[sibling]) for sibling in self.siblings.values()]

    def reordered(self, order: Sequence[int]) -> "Decision":
        """The same decision for the rollouts in another order, row order[0] first."""
        place_of = {row: place for place, row in enumerate(order)}
        return replace(
            self,
            rollouts=self.rollouts.reordered(order),
            correct_B=_reordered(self.correct_B, order),
            teacher_B=_reordered(self.teacher_B, order),
            route=Route(*(_reordered(part, order) for part in (self.route.policy_B, self.route.distill_B))),
            prompts={place: self.prompts[row] for place, row in enumerate(order) if row in self.prompts},
            siblings={place: place_of[self.siblings[row]] for place, row in enumerate(order) if row in self.siblings},
        )


def _reordered(column, order: Sequence[int]):
    return column[list(order)] if isinstance(column, Tensor) else [column[row] for row in order]


def decide(rollouts: Rollouts, routing: Routing, builder: TeacherPromptBuilder, step: int) -> Decision:
    """Decide what each rollout learns from.

    rollouts: the whole batch, verified. routing: the rule and its settings. builder: writes the teacher's prompts. step: of
    the training, for the seeds of the siblings' choice. Raises ValueError, with the rollouts, for rewards that are not
    finite, and for a chat that the builder refuses.
    """
    bad = torch.nonzero(~torch.isfinite(rollouts.reward_B)).flatten().tolist()
    if bad:
        named = [f"rollout {int(rollouts.session_B[row])} of prompt {int(rollouts.index_B[row])}" for row in bad]
        raise ValueError(
            f"rewards that are not finite: {', '.join(named)}. The reward function has to return a finite number"
        )
    correct_B = (rollouts.reward_B >= routing.correct_threshold) & rollouts.real_B
    sibling_B = _siblings(rollouts, routing, correct_B, step)
    shown = _shown(rollouts, routing, sibling_B, builder)
    feedback = rollouts.feedback if routing.feedback != "off" else [None] * len(sibling_B)
    teachable = [text is not None or said is not None for text, said in zip(shown, feedback, strict=True)]
    teacher_B = torch.tensor(teachable, dtype=torch.bool) & rollouts.real_B
    success_B = has_success(correct_B, rollouts.group_B)
    prompts: dict[int, TeacherPrompt] = {}
    rerouted = 0
    while True:  # a rule may ask for other rows where one that it asked for turns out to have no teacher
        route = route_samples(routing.rule, correct_B, teacher_B, routing.mix, success_B)
        asked_B = teacher_B & ((route.distill_B > 0) | routing.ask_all)
        new = [row for row in torch.nonzero(asked_B).flatten().tolist() if row not in prompts]
        if not new:
            break
        for row in new:
            prompt = _prompt(rollouts, row, shown[row], feedback[row], routing, builder)
            if prompt is not None:
                prompts[row] = prompt
                continue
            teacher_B[row] = False
            rerouted += 1
    prompts = dict(sorted(prompts.items()))
    siblings = {row: int(sibling_B[row]) for row in prompts if shown[row] is not None and sibling_B[row] >= 0}
    weighted = _weighted(route, routing, correct_B, rollouts)
    return Decision(rollouts, correct_B, teacher_B, weighted, prompts, siblings, rerouted)


def _shown(
    rollouts: Rollouts, routing: Routing, sibling_B: Tensor, builder: TeacherPromptBuilder
) -> list[Callable[[], str] | None]:
    """What each row's teacher would be shown beside the question, as a text to be made; None for nothing."""
    if routing.feedback == "replace":
        return [None] * len(sibling_B)
    if routing.demonstration == REFERENCE:
        solutions = rollouts.reference or [None] * len(sibling_B)
        return [None if text is None else partial(strip_thinking, text) for text in solutions]
    return [partial(builder.demonstration, rollouts.responses[row]) if row >= 0 else None for row in sibling_B.tolist()]


def _weighted(route: Route, routing: Routing, correct_B: Tensor, rollouts: Rollouts) -> Route:
    """The route weights times each row's own, whose mean over the rows that count is 1."""
    weight_B = routing.row_weight(correct_B, rollouts.group_B, rollouts.session_B).to(route.policy_B)
    counted_B = rollouts.real_B & (weight_B > 0) & (route.policy_B + route.distill_B > 0)
    weight_B = normalised(weight_B, counted_B)
    return Route(route.policy_B * weight_B, route.distill_B * weight_B)


def _siblings(rollouts: Rollouts, routing: Routing, correct_B: Tensor, step: int) -> Tensor:
    """The row of the rollout that each row would be shown, -1 for none."""
    if routing.demonstration == REFERENCE:
        return torch.full_like(rollouts.group_B, -1)
    places = zip(rollouts.index_B.tolist(), rollouts.session_B.tolist(), strict=True)
    seed_B = torch.tensor([checksum(routing.seed, step, index, session) for index, session in places], dtype=torch.long)
    return choose_demonstrations(
        routing.demonstration,
        correct_B & rollouts.last_B,
        _settled(rollouts),
        rollouts.length_B,
        rollouts.session_B,
        seed_B,
    )


def _settled(rollouts: Rollouts) -> Tensor:
    """The groups' labels in the order of their prompts: those of the batch are drawn anew in every run."""
    first: dict[int, tuple] = {}
    for row, group in enumerate(rollouts.group_B.tolist()):
        if group not in first:
            first[group] = int(rollouts.index_B[row]), repr(rollouts.chats[row])
    place = {group: number for number, group in enumerate(sorted(first, key=lambda group: first[group]))}
    return torch.tensor([place[group] for group in rollouts.group_B.tolist()], dtype=torch.long)


def _prompt(
    rollouts: Rollouts,
    row: int,
    shown: Callable[[], str] | None,
    feedback: str | None,
    routing: Routing,
    builder: TeacherPromptBuilder,
) -> TeacherPrompt | None:
    """The teacher's prompt of one row, None where it does not fit."""
    room = None if routing.context is None else routing.context - len(rollouts.responses[row])
    prompt = builder.build(rollouts.chats[row], None if shown is None else shown(), feedback, room)
    return None if prompt is not None and prompt.shortened and routing.overflow == "reroute" else prompt
