"""verl's vLLM server with its door shut. Rollouts are asked for through Ray; verl starts vLLM's HTTP server beside it all the
same, on the node's address, where it would answer whoever asks.
"""

import asyncio
import logging
import secrets
from contextlib import nullcontext
from typing import Any

import ray
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from srpo_recipe.method.seeds import of_continuation
from srpo_recipe.training.fields import DRAWN_FROM
from srpo_recipe.training.network import confine
from srpo_recipe.training.watch.engine_watch import EngineWatch

# What the import of verl's server takes along puts the root logger at ERROR, and every warning of the process would be lost.
logging.getLogger().setLevel(logging.WARNING)

# Of GET alone: they tell numbers and take nothing. The trainer asks for the first where a server is too busy to answer it through
# Ray (watch/actors.py), Prometheus for the second.
OPEN = ("/health", "/metrics")
MOST_CALLS = 100_000
REFUSED = b'{"error": "This server takes its requests from the trainer, through Ray."}'


class Shut:
    """ASGI middleware that refuses every request but GET of OPEN."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan" or (scope.get("method") == "GET" and scope["path"] in OPEN):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})
        else:
            await send({"type": "websocket.close", "code": 1008})


def for_engine(sampling_params: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The parameters that vLLM is given for a request of so many tokens: one that goes on where another was stopped has a seed of
    its own, or its first word would be drawn with the noise of the response's first.
    """
    params = dict(sampling_params)
    drawn_from = params.pop(DRAWN_FROM, tokens)
    if "seed" in params and tokens > drawn_from:
        params["seed"] = of_continuation(params["seed"], tokens - drawn_from)
    return params


class ShutServer(vLLMHttpServer):
    """verl's server, whose HTTP side refuses all but OPEN and asks for a key that nobody has besides.

    It listens on the node's address, where the trainer's process on another node finds it; on one machine that is loopback.
    """

    def __init__(self, *args, **kwargs):
        confine()
        super().__init__(*args, **kwargs)
        self.engine_watch: EngineWatch | None = None

    async def generate(self, prompt_ids, sampling_params: dict[str, Any], *args, **kwargs):
        """verl's. A rollout that was stopped comes again with what it had drawn behind its prompt (verl's llm_server.py:291)."""
        return await super().generate(prompt_ids, for_engine(sampling_params, len(prompt_ids)), *args, **kwargs)

    async def watch_engine(self, stall_seconds: float, name: str) -> None:
        """End the run where the engine stands still so long. Asked for by the trainer, of every server."""
        if getattr(self, "engine", None) is not None:  # a node of a larger replica has none of its own
            self.engine_watch = EngineWatch(self.engine.is_sleeping, stall_seconds, name)
            self.watching = asyncio.create_task(self.engine_watch.run())  # asyncio itself keeps no task alive

    async def collective_rpc(self, *args, **kwargs):
        """verl's, by which weights arrive: the engine answers nothing else meanwhile."""
        with self.engine_watch.held() if self.engine_watch else nullcontext():
            return await super().collective_rpc(*args, **kwargs)

    async def run_server(self, args) -> None:
        args.api_key = [secrets.token_urlsafe(32)]
        args.middleware = [*args.middleware, f"{Shut.__module__}.{Shut.__qualname__}"]
        args.disable_fastapi_docs = True
        await super().run_server(args)


class ShutReplica(vLLMReplica):
    """verl's replica of a model in vLLM, over `ShutServer`s."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(ShutServer)

    @property
    def max_concurrency(self) -> int:
        """Calls that a server works on at a time. A stopped rollout waits inside its own, and those that bring weights must not
        queue up behind a batch of them.
        """
        return max(MOST_CALLS, super().max_concurrency)


def register() -> None:
    """Put the replica in the place of verl's own, in the process that makes replicas: the trainer's."""
    RolloutReplicaRegistry.register("vllm", lambda: ShutReplica)
