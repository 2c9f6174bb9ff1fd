"""verl's single-turn agent loop with a seed for every rollout."""

import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopOutput,
)
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from srpo_recipe.method.self_teacher import with_system_prompt


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """One user turn, one response. Used through agent_loops.yaml as verl's default agent loop."""

    # `run` keeps nothing between rollouts, so one instance serves them all.
    stateless = True

    async def run(self, sampling_params: dict[str, Any], **kwargs) -> AgentLoopOutput:
        srpo = self.config.srpo
        place = (srpo.seed, kwargs.get("global_steps"), kwargs.get("index"), kwargs.get("session_id"))
        seed = zlib.crc32("/".join(map(str, place)).encode())
        kwargs["raw_prompt"] = with_system_prompt(list(kwargs["raw_prompt"]), srpo.system_prompt)
        output = await super().run({**sampling_params, "seed": seed}, **kwargs)
        output.extra_fields["truncated"] = self._truncated(output)
        return output

    def _truncated(self, output: AgentLoopOutput) -> bool:
        """Whether generation stopped at the token limit that verl's server sets, rather than at an end of its own."""
        room = self.prompt_length + self.response_length - len(output.prompt_ids)
        limit = max(1, min(self.response_length, room))
        return len(output.response_ids) >= limit and output.response_ids[-1] != self.tokenizer.eos_token_id
