"""An agent loop as a user would write one: it asks again with its first answer in the chat, so a rollout has two outputs."""

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from srpo_recipe.training.agent_loop import TeachableLoop


class TwoTurns(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        first = await super().run(sampling_params, **kwargs)
        text = self.tokenizer.decode(first.response_ids, skip_special_tokens=True)
        again = {"role": "user", "content": kwargs["raw_prompt"][-1]["content"]}
        turns = [*kwargs["raw_prompt"], {"role": "assistant", "content": text}, again]
        return [first, await super().run(sampling_params, **{**kwargs, "raw_prompt": turns})]


class TeachableTwoTurns(TeachableLoop, TwoTurns):
    """The same, telling the self-teacher what the student was shown."""


class Forked(TeachableTwoTurns):
    """The second output is the one that counts: the first answer, which the embedded model gives right now and then."""

    async def run(self, sampling_params, **kwargs):
        return list(reversed(await super().run(sampling_params, **kwargs)))
