"""The API: its routes, its documentation, and what surrounds them."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from steelyard import __version__
from steelyard.health import readiness
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard_api import (
    access,
    admin,
    analytics,
    document,
    errors,
    runs,
    scores,
    session_analytics,
    session_runs,
    session_scores,
    sessions,
    traces,
)
from steelyard_api.bodies import MOST_VALUES
from steelyard_api.door import Admission
from steelyard_api.ingest import Ingest
from steelyard_api.shapes import Failure
from steelyard_api.wire import BodyLimit, RequestId

log = logging.getLogger(__name__)
DESCRIPTION = """
Steelyard tells you whether your LLM agents work: send traces, start a run, read scores.

**Who asks.** Every request says who it is and which project it is about. Who: an API key (`X-API-Key`), or a token of your
identity provider (`Authorization: Bearer`). Which project: its name (`X-Project-Name`, made on first use inside the
organisation of the key), or its id (`X-Project-ID`). What belongs to another project is answered like something that does
not exist.

**Answers.** A refusal is `{"detail": "…", "errors": [{"field": "…", "message": "…"}]}`; `errors` names the fields that it is
about. Lists are `{"items": […], "total": n, "limit": n, "offset": n}`. `X-Request-ID` is echoed, or made. Times are ISO 8601; one
without a zone is UTC.

**Examples.** An id of zeros stands for an id of yours. The example of a trace has none, so each time it is sent it is another one.

**Repeating.** What creates something takes an `Idempotency-Key`: the same request with the same key has its effect once.
A 503 or 429 says in `Retry-After` when to try again. A 429 changed nothing; a 503 says whether it may have: then the same ids or
the same key make it safe to repeat.

**What happens when things meet.**

* A trace is changed while it is judged: the score keeps the version it saw, in `trace_version`.
* A trace is deleted while it is judged: its pairs end as not scored, because the trace was deleted; no score appears.
* A run is deleted while it is under way: it is gone at once, and results that arrive later change nothing.
* A key is revoked while a run that it asked for is under way: the run belongs to the project and goes on; the next request
  with the key is a 401.
* A score is changed that a judge made: what the judge said stays in the score's history, and no later delivery of the
  judge's result changes the new word.
* A session gets more traces while a run is at it: its score is of the traces that it had when the run took it up, and says how
  many in `traces_seen`; the next run's score has another `session_version`.
* A session is deleted: its scores go with it.
* A trace that a run means gets more spans: the judge reads the trace when its turn comes, and says which version it was.
"""
TAGS = [
    {"name": "Traces", "description": "What agents did: sent, changed, listed, counted."},
    {"name": "Sessions", "description": "Traces of one conversation, seen as one."},
    {"name": "Trace runs", "description": "Which traces are scored by which metrics, and how far that is."},
    {"name": "Trace scores", "description": "What judges, programs and people said about traces."},
    {"name": "Score analytics", "description": "Scores added up, over time, and by value."},
    {"name": "Session runs", "description": "Which sessions are scored by which metrics, and how far that is."},
    {"name": "Session scores", "description": "What runs said about sessions."},
    {"name": "Session analytics", "description": "Session scores added up, over time, of one session and compared."},
    {
        "name": "Administration",
        "description": "Organisations, their projects and their keys; on where ADMIN_TOKEN is set.",
    },
]
REFUSALS = {
    400: "the request makes sense and cannot be done; the answer names the field",
    401: "no valid credentials: missing, unknown, expired or revoked",
    404: "no such thing in this project, or no such project",
    408: "the body comes too slowly",
    413: f"the body is larger than the deployment accepts, or has more than {MOST_VALUES:,} JSON values",
    415: "the body's encoding is not understood: gzip is",
    422: "a field is missing, malformed or out of range; the answer names it",
    429: "too many requests, a minute or at once; Retry-After says when the next one is taken",
    503: "the service is busy, or its database is away; the answer says whether something may have been changed, Retry-After "
    "when to repeat",
}
NOUNS = (
    traces, sessions, runs, scores, analytics, session_runs, session_scores, session_analytics,
)  # fmt: skip
Running = Callable[[], AbstractAsyncContextManager[None]]


def api(
    settings: Settings,
    database: Database,
    running: Running | None = None,
    environ: Mapping[str, str] = os.environ,
) -> FastAPI:
    """`running` is what the process does beside answering: relaying the outbox. `environ` says which providers have keys."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running() if running else _nothing():
            log.info("api: ready, pid %d, http://%s:%d/docs", os.getpid(), settings.http_host, settings.http_port)
            yield
            await app.state.ingest.stop()
        await database.stop()

    app = FastAPI(
        title="Steelyard",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.database, app.state.environ = settings, database, environ
    access.install(app, settings, database)
    app.state.ingest = Ingest(database, settings.ingest_group)
    most = app.state.most_bytes = int(settings.max_body_mb * 1_000_000)
    app.state.admission = Admission(settings.requests_at_once, int(settings.bodies_mb * 1_000_000), most, MOST_VALUES)
    routes, documents = _described(settings.admin_token is not None)
    app.router.routes.extend(routes.routes)
    _operations(app, database)
    errors.install(app)
    document.install(app, documents)
    app.add_middleware(BodyLimit, most=most)
    app.add_middleware(RequestId)
    return app


@cache
def _described(administered: bool) -> tuple[APIRouter, document.Documents]:
    """The routes, and the cache of their document: of every API in this process. FastAPI takes half a second to build the
    ones and more than one to write the other, and the tests have an API for each database and each of their settings."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": said} for status, said in REFUSALS.items()
    }
    shared = APIRouter()
    for noun in (*NOUNS, admin) if administered else NOUNS:
        shared.include_router(noun.router, responses=refusals)
    return shared, []


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
