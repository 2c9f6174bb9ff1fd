"""verl's agent loops, fit for a self-teacher: seeded, under the method's system prompt, and telling what the student was shown.

vLLM draws a request with its own generator when the request carries a seed, so what is sampled depends on the prompt, the step
and the rollout's number, not on how requests met in a batch. A resumed run therefore draws what the uninterrupted one drew.
"""

from contextvars import ContextVar
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.method.demonstrations import REFERENCE
from srpo_recipe.method.seeds import checksum, row_number

# The prompts of the rollout that runs in this task, as they are rendered: token ids, and the chat that they were rendered from.
# One instance of a loop may serve many rollouts.
_rendered: ContextVar[list[tuple[list[int], dict[str, Any]]] | None] = ContextVar("rendered", default=None)


class TeachableLoop(AgentLoopBase):
    """Stands before one of verl's agent loops among the base classes of a loop that the self-teacher can follow.

    It puts `srpo.system_prompt` before a chat that has no system turn, seeds every rollout, and leaves in the extra_fields of
    each output (a loop that summarises or forks its context makes several of one rollout):

    student_chat: {"messages": [...], "tools": [...] or None}, as the student's prompt was rendered from them (an empty list of
        tools stays one, since chat templates tell it from None). It is absent when the loop renders that prompt otherwise than
        through verl's `ct_build_initial_tokens`.
    reference: the data's own solution of the question, its extra_info.reference, where the teacher is shown it.
    truncated: whether generation stopped at the token limit that verl's server sets, rather than at an end of its own.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput | list[AgentLoopOutput]:
        srpo = self.config.srpo
        index = row_number(kwargs.get("index") or 0)
        seed = checksum(srpo.seed, kwargs.get("global_steps"), index, kwargs.get("session_id"))
        kwargs["raw_prompt"] = with_system_prompt(kwargs["raw_prompt"], srpo.system_prompt)
        rendered: list[tuple[list[int], dict[str, Any]]] = []
        token = _rendered.set(rendered)
        try:
            outputs = await super().run({**sampling_params, "seed": seed}, **kwargs)
        finally:
            _rendered.reset(token)
        for output in outputs if isinstance(outputs, list) else [outputs]:
            if (chat := _chat_of(output, rendered)) is not None:
                output.extra_fields["student_chat"] = chat
            if srpo.teacher.demonstration == REFERENCE:
                output.extra_fields[REFERENCE] = (kwargs.get("extra_info") or {}).get(REFERENCE) or None
            output.extra_fields["truncated"] = self._truncated(output)
        return outputs

    async def ct_build_initial_tokens(self, messages, tools=None, **kwargs) -> list[int]:
        # copies: a loop of many turns goes on to write into its own lists
        chat = {"messages": list(messages), "tools": None if tools is None else list(tools)}
        ids = await super().ct_build_initial_tokens(messages, tools=tools, **kwargs)
        rendered = _rendered.get()
        if rendered is not None:
            rendered.append((list(ids), chat))
        return ids

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
