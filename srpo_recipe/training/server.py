"""verl's vLLM server with its door shut. Rollouts are asked for through Ray; verl starts vLLM's HTTP server beside it all the
same, on the node's address, where it would answer whoever asks.
"""

import secrets

import ray
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from srpo_recipe.training.network import confine

LOOPBACK = "127.0.0.1"
OPEN = ("/health", "/metrics")  # they tell numbers and take nothing
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


class ShutServer(vLLMHttpServer):
    """verl's server, whose HTTP side is on loopback, asks for a key that nobody has, and refuses all but OPEN.

    With rollout.prometheus.enable it is on the node's address, where Prometheus reads its numbers.
    """

    _server_address: str  # read by verl as the host of the HTTP server (vllm_async_server.py:533)

    def __init__(self, *args, **kwargs):
        confine()
        super().__init__(*args, **kwargs)

    async def run_server(self, args) -> None:
        args.api_key = [secrets.token_urlsafe(32)]
        args.middleware = [*args.middleware, f"{Shut.__module__}.{Shut.__qualname__}"]
        args.disable_fastapi_docs = True
        node = self._server_address
        if not self.config.prometheus.enable:
            self._server_address = LOOPBACK
        await super().run_server(args)
        self._server_address = node  # with the port it names the server, also to other nodes


class ShutReplica(vLLMReplica):
    """verl's replica of a model in vLLM, over `ShutServer`s."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(ShutServer)


def register() -> None:
    """Put the replica in the place of verl's own, in the process that makes replicas: the trainer's."""
    RolloutReplicaRegistry.register("vllm", lambda: ShutReplica)
