"""The rollout's rim: verl's single-turn agent loop with one seed for every rollout.

vLLM draws a request with its own generator when the request carries a seed, so what is sampled depends on the prompt, the step
and the rollout's number, not on how requests met in a batch. A resumed run therefore draws what the uninterrupted one drew.
"""

import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def with_system_prompt(messages: list[dict], system_prompt: str | None) -> list[dict]:
    """Prepend a system turn to a chat that has none; None leaves every chat as it is."""
    if system_prompt is None or messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """One user turn, one response. Used through agent_loops.yaml as verl's default agent loop."""

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput:
        srpo = self.config.srpo
        place = (srpo.seed, kwargs.get("global_steps"), kwargs.get("index"), kwargs.get("session_id"))
        seed = zlib.crc32("/".join(map(str, place)).encode())
        kwargs["raw_prompt"] = with_system_prompt(list(kwargs["raw_prompt"]), srpo.system_prompt)
        return await super().run({**sampling_params, "seed": seed}, **kwargs)
