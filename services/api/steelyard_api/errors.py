"""Every refusal in one form, and nothing a user sends ends as a 500."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from steelyard.reasons import reason, sqlstate
from steelyard.store.database import temporary

log = logging.getLogger(__name__)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
LONGEST_FIELD = 200
# What pydantic adds to a field's place for each thing that a value might have been.
ALTERNATIVES = {"str", "bool", "int", "float"}


class Refused(Exception):
    """An answer with a status, a sentence, and the fields it is about."""

    def __init__(
        self, status: int, detail: str, *errors: tuple[str, str], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers


def not_found(what: str) -> Refused:
    """The same for an unknown id and for one of another project."""
    return Refused(404, f"{what} not found")


def answer(
    status: int, detail: str, errors: Sequence[tuple[str, str]] = (), headers: Mapping[str, str] | None = None
) -> Response:
    body: dict[str, Any] = {"detail": _clean(detail)}
    if errors:
        body["errors"] = [{"field": _clean(field), "message": _clean(message)} for field, message in errors]
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type="application/json")


def install(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(ConnectionError, _database)
    app.add_exception_handler(OSError, _database)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)


def broken(scope: Scope, e: Exception) -> Response:
    """The last resort. Whoever calls it sees to it that the answer has the id that is logged here."""
    # The route and not the path: ids of sessions are users' words.
    route = getattr(scope.get("route"), "path", "an unknown route")
    log.error("%s %s failed, request %s", scope["method"], route, scope.get("request_id"), exc_info=e)
    return answer(500, "Internal error; it has been logged with this request's X-Request-ID")


async def _refused(_: Request, e: Exception) -> Response:
    assert isinstance(e, Refused)
    return answer(e.status, e.detail, e.errors, e.headers)


async def _invalid(request: Request, e: Exception) -> Response:
    """Names the fields and leaves out the values: a value may be what no JSON can say, and may be a secret."""
    assert isinstance(e, RequestValidationError)
    errors = e.errors()[:50]
    if errors[0]["loc"][0] == "path" and request.scope["path"] in _described(request):
        return _no_such_method(request)  # what was taken for an id is the name of a route, by another method
    # What a run's filters say is a request that makes no sense, not a malformed one: the contract tells them apart.
    about_filters = all(x["loc"][:2] == ("body", "filters") for x in errors)
    status, detail = (400, "Invalid filters") if about_filters else (422, "Validation error")
    said: dict[str, list[str]] = {}
    for x in errors:
        said.setdefault(_field(x), []).append(_message(x))
    return answer(status, detail, [(field, "; or ".join(messages)) for field, messages in said.items()])


async def _http(request: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    if e.status_code == 405:
        return _no_such_method(request)
    # The only 400 that comes as such is FastAPI's, for a body that broke off.
    errors = [("body", "cannot be read")] if e.status_code == 400 else []
    return answer(e.status_code, str(e.detail), errors, e.headers)


def _no_such_method(request: Request) -> Response:
    said = f"{request.method[:20]} is not possible here; the Allow header says what is"
    return answer(405, said, (), {"Allow": ", ".join(_allowed(request))})


def _allowed(request: Request) -> list[str]:
    """As described where the path is spelled out; else of all routes that match, for Starlette knows the first one's."""
    if described := _described(request).get(request.scope["path"]):
        return [m.upper() for m in described]
    asked = [{**request.scope, "method": m} for m in METHODS]
    return [s["method"] for s in asked if any(r.matches(s)[0] is Match.FULL for r in request.app.routes)]


def _described(request: Request) -> Mapping[str, Mapping[str, Any]]:
    paths: Mapping[str, Mapping[str, Any]] = request.app.openapi()["paths"]
    return paths


AWAY = "The database does not take this request right now; nothing was changed"
REFUSED = ("25006", "57014")  # a read-only transaction, a statement that took too long
LOST = (
    "The database went away in the middle of this request: what it writes may or may not have been written. Repeat it with "
    "the same ids or the same Idempotency-Key"
)


def _lost(e: Exception) -> bool:
    """Connections are dropped after refusals too, and then it is certain that nothing was written."""
    return isinstance(e, DBAPIError) and e.connection_invalidated and sqlstate(e) not in REFUSED


async def _database(_: Request, e: Exception) -> Response:
    if temporary(e):
        log.warning("the database is away: %s", reason(e))
        return answer(503, LOST if _lost(e) else AWAY, (), {"Retry-After": "1"})
    if isinstance(e, DBAPIError) and (sqlstate(e) or "22").startswith("22"):
        # Class 22 is data that Postgres cannot hold: characters or numbers out of its range.
        return answer(422, "Validation error", [("request", "holds a value that cannot be stored or searched for")])
    raise e


async def _unstorable(_: Request, e: Exception) -> Response:
    return answer(422, "Validation error", [("request", "holds text that is not valid Unicode")])


def _field(error: Any) -> str:
    """`body.spans.3.name` as users know it: `spans.3.name`."""
    if error["type"] == "json_invalid":
        return "body"
    parts = [str(p) for p in error["loc"]]
    if len(parts) > 1 and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] in ALTERNATIVES:
        parts = parts[:-1]
    return ".".join(parts)[:LONGEST_FIELD]


def _message(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if isinstance(error.get("input"), bytes):
        return "is not JSON by its Content-Type: send application/json"
    return str(error["msg"]).removeprefix("Value error, ")


def _clean(said: str) -> str:
    return said.encode("utf-8", "replace").decode()
