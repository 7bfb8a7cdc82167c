"""The API: its routes, its documentation, and what surrounds them."""

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from steelyard import __version__
from steelyard.health import readiness
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard_api import errors, runs, traces
from steelyard_api.shapes import Failure
from steelyard_api.wire import BodyLimit, RequestId

log = logging.getLogger(__name__)
DESCRIPTION = """
Steelyard tells you whether your LLM agents work: send traces, start a run, read scores.

Every request names an API key (`X-API-Key`) and a project (`X-Project-Name`, made on first use).
"""
REFUSALS = {
    400: "the request makes sense and cannot be done; the answer names the field",
    401: "the key is missing, unknown, expired or revoked",
    404: "no such thing in this project",
    413: "the body is larger than the deployment accepts",
    422: "a field is missing, malformed or out of range; the answer names it",
    503: "the database is not reachable; nothing was changed, try again",
}
Running = Callable[[], AbstractAsyncContextManager[None]]


def api(settings: Settings, database: Database, running: Running | None = None) -> FastAPI:
    """`running` is what the process does beside answering: relaying the outbox."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running() if running else _nothing():
            log.info("api: ready, pid %d, http://%s:%d/docs", os.getpid(), settings.http_host, settings.http_port)
            yield
        await database.stop()

    app = FastAPI(title="Steelyard", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.settings, app.state.database = settings, database
    app.state.most_bytes = int(settings.max_body_mb * 1_000_000)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": said} for status, said in REFUSALS.items()
    }
    for router in (traces.router, runs.router):
        app.include_router(router, responses=refusals)
    _operations(app, database)
    errors.install(app)
    app.add_middleware(BodyLimit, most=app.state.most_bytes)
    app.add_middleware(RequestId)
    return app


def _operations(app: FastAPI, database: Database) -> None:
    async def unwell() -> str | None:
        await database.start()
        return None

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "alive", "service": "api"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        """Kafka is not asked: requests are accepted without it, and what they announce waits in the outbox."""
        status, kind, body = await readiness("api", unwell)
        return Response(body, status, media_type=kind)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
