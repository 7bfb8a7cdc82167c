"""/healthz: this process is alive. /readyz: its dependencies and its assignment are. /metrics: Prometheus."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Unwell = Callable[[], Awaitable[str | None]]


class Server(uvicorn.Server):
    """Signals belong to the frame, which stops things in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Health:
    """A worker's small HTTP server, up before its dependencies are, so that a waiting process can say what for."""

    def __init__(self, name: str, host: str, port: int, unwell: Unwell) -> None:
        self._name, self._unwell = name, unwell
        config = uvicorn.Config(
            self._app,
            host=host,
            port=port,
            interface="asgi3",  # a bound method is taken for the two-step ASGI of old
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        self._server = Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        answers = {"/healthz": self._alive, "/readyz": self._readiness, "/metrics": self._metrics}
        answer = answers.get(scope["path"])
        status, kind, body = await answer() if answer else (404, "application/json", b'{"detail":"Not found"}')
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": body})

    async def _alive(self) -> tuple[int, str, bytes]:
        return 200, "application/json", orjson.dumps({"status": "alive", "service": self._name})

    async def _readiness(self) -> tuple[int, str, bytes]:
        return await readiness(self._name, self._unwell)

    async def _metrics(self) -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE_LATEST, generate_latest()


async def readiness(name: str, unwell: Unwell) -> tuple[int, str, bytes]:
    try:
        async with asyncio.timeout(5):
            why = await unwell()
    except Exception as e:
        why = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
    said = {"status": "ready", "service": name} if why is None else {"status": "not ready", "service": name, "why": why}
    return 200 if why is None else 503, "application/json", orjson.dumps(said)
