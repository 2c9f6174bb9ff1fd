"""verl's agent loops, fit for a self-teacher: seeded, under the method's system prompt, and telling what the student was shown.

vLLM draws a request with its own generator when the request carries a seed, so what is sampled depends on the prompt, the step
and the rollout's number, not on how requests met in a batch. A resumed run therefore draws what the uninterrupted one drew.
Every request of a rollout has a seed of its own; the part of a stopped one that is drawn later gets its in server.py.
"""

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.method.demonstrations import REFERENCE
from srpo_recipe.method.seeds import checksum, of_request, row_number
from srpo_recipe.training.fields import DRAWN_FROM


@dataclass
class _Rollout:
    """What one rollout has done so far. rendered: token ids of its prompts, and the chats that they were rendered from; asked:
    how often each prompt went to the engine.
    """

    rendered: list[tuple[list[int], dict[str, Any]]] = field(default_factory=list)
    asked: Counter[tuple[int, ...]] = field(default_factory=Counter)


# That which runs in this task: one instance of a loop may serve many.
_rollout: ContextVar[_Rollout | None] = ContextVar("rollout", default=None)


class _SeededClient:
    """verl's client of the engines, which gives each request of a rollout its seed."""

    def __init__(self, client: Any):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, *args, **request) -> Any:
        rollout, params = _rollout.get(), request.get("sampling_params") or {}
        if rollout is not None and "seed" in params:
            prompt, seed = tuple(map(int, request["prompt_ids"])), params["seed"]
            if rollout.asked:  # the first one has the rollout's own
                seed = of_request(seed, prompt, rollout.asked[prompt])
            rollout.asked[prompt] += 1
            request["sampling_params"] = {**params, "seed": seed, DRAWN_FROM: len(prompt)}
        return await self._client.generate(*args, **request)


class TeachableLoop(AgentLoopBase):
    """Stands before one of verl's agent loops among the base classes of a loop that the self-teacher can follow.

    It puts `srpo.system_prompt` before a chat that has no system turn, seeds every request, and leaves in the extra_fields of
    each output (a loop that summarises or forks its context makes several of one rollout):

    student_chat: {"messages": [...], "tools": [...] or None}, as the student's prompt was rendered from them (an empty list of
        tools stays one, since chat templates tell it from None). It is absent when the loop renders that prompt otherwise than
        through verl's `ct_build_initial_tokens`.
    reference: the data's own solution of the question, its extra_info.reference, where the teacher is shown it.
    truncated: whether generation stopped at the token limit that verl's server sets, rather than at an end of its own.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_manager: Any = _SeededClient(self.server_manager)

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput | list[AgentLoopOutput]:
        srpo = self.config.srpo
        index = row_number(kwargs.get("index") or 0)
        seed = checksum(srpo.seed, kwargs.get("global_steps"), index, kwargs.get("session_id"))
        kwargs["raw_prompt"] = with_system_prompt(kwargs["raw_prompt"], srpo.system_prompt)
        rollout = _Rollout()
        token = _rollout.set(rollout)
        try:
            outputs = await super().run({**sampling_params, "seed": seed}, **kwargs)
        finally:
            _rollout.reset(token)
        for output in outputs if isinstance(outputs, list) else [outputs]:
            if (chat := _chat_of(output, rollout.rendered)) is not None:
                output.extra_fields["student_chat"] = chat
            if srpo.teacher.demonstration == REFERENCE:
                output.extra_fields[REFERENCE] = (kwargs.get("extra_info") or {}).get(REFERENCE) or None
            output.extra_fields["truncated"] = self._truncated(output)
        return outputs

    async def ct_build_initial_tokens(self, messages, tools=None, **kwargs) -> list[int]:
        # copies: a loop of many turns goes on to write into its own lists
        chat = {"messages": list(messages), "tools": None if tools is None else list(tools)}
        ids = await super().ct_build_initial_tokens(messages, tools=tools, **kwargs)
        rollout = _rollout.get()
        if rollout is not None:
            rollout.rendered.append((list(ids), chat))
        return ids

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """verl filters and refuses rows by their own chat, and would cut here what the system prompt made too long. Later prompts
        of a rollout are a loop's own affair.
        """
        limit, rollout = self.rollout_config.prompt_length, _rollout.get()
        first = bool(self.config.srpo.system_prompt) and rollout is not None and not rollout.rendered
        if first and len(prompt_ids) > limit and self.config.data.get("truncation") == "error":
            raise ValueError(
                f"with srpo.system_prompt the prompt has {len(prompt_ids)} tokens, more than data.max_prompt_length={limit}: "
                "raise that, shorten srpo.system_prompt, or choose where to cut with data.truncation"
            )
        return super()._cap_text_prompt_length(prompt_ids)

    def _truncated(self, output: AgentLoopOutput) -> bool:
        room = self.prompt_length + self.response_length - len(output.prompt_ids)
        limit = max(1, min(self.response_length, room))
        return len(output.response_ids) >= limit and output.response_ids[-1] != self.tokenizer.eos_token_id


def _chat_of(output: AgentLoopOutput, rendered: list[tuple[list[int], dict[str, Any]]]) -> dict[str, Any] | None:
    """What an output's prompt was rendered from; None where the loop made it in another way."""
    if len(rendered) == 1:
        return rendered[0][1]
    return next((chat for ids, chat in rendered if ids == output.prompt_ids), None)


class SeededSingleTurnAgentLoop(TeachableLoop, SingleTurnAgentLoop):
    """One user turn, one response: the default agent loop."""

    # `run` keeps nothing between rollouts, so one instance serves them all.
    stateless = True


class SeededToolAgentLoop(TeachableLoop, ToolAgentLoop):
    """Tool calls and their answers, until the model answers without one or a limit is reached."""
