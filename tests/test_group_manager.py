"""verl's manager is given workers whose processes run already."""

import asyncio

import pytest
from omegaconf import OmegaConf


def test_workers_that_run_already_are_begun_and_what_they_raise_is_raised():
    from srpo_recipe.training.group_manager import GroupManager, _Running

    class Worker:
        """As a Ray handle: `begin.remote(...)` gives something to await."""

        def __init__(self):
            self.begin, self.given = self, None

        async def remote(self, *args):
            self.given = args
            if args == ("bad",):
                raise ValueError("no such model")

    workers = [Worker(), Worker()]
    running = _Running(list(workers))
    assert running.options(name="any").remote("good", 1) is workers[0]
    assert running.remote("bad") is workers[1]
    manager = GroupManager.__new__(GroupManager)
    manager.agent_loop_workers_class = running
    manager.rollout_config = OmegaConf.create({"agent": {"num_workers": 0}})
    with pytest.raises(ValueError, match="no such model"):
        asyncio.run(_with_nodes(manager))
    assert workers[0].given == ("good", 1)


async def _with_nodes(manager):
    import ray

    nodes, ray.nodes = ray.nodes, lambda: []
    try:
        await manager._init_agent_loop_workers()
    finally:
        ray.nodes = nodes
