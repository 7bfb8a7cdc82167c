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

from steelyard.store.database import reason, sqlstate, temporary

log = logging.getLogger(__name__)


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
    app.add_exception_handler(Exception, _bug)


async def _refused(_: Request, e: Exception) -> Response:
    assert isinstance(e, Refused)
    return answer(e.status, e.detail, e.errors, e.headers)


async def _invalid(_: Request, e: Exception) -> Response:
    """Names the fields and leaves out the values: a value may be what no JSON can say, and may be a secret."""
    assert isinstance(e, RequestValidationError)
    errors = e.errors()[:50]
    # What a run's filters say is a request that makes no sense, not a malformed one: the contract tells them apart.
    about_filters = all(x["loc"][:2] == ("body", "filters") for x in errors)
    status, detail = (400, "Invalid filters") if about_filters else (422, "Validation error")
    return answer(status, detail, [(_field(x["loc"]), _message(x)) for x in errors])


async def _http(_: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    return answer(e.status_code, str(e.detail), (), e.headers)


async def _database(_: Request, e: Exception) -> Response:
    if temporary(e):
        log.warning("the database is away: %s", reason(e))
        return answer(503, "The database is not reachable right now; nothing was changed", (), {"Retry-After": "1"})
    if isinstance(e, DBAPIError) and (sqlstate(e) or "22").startswith("22"):
        # Class 22 is data that Postgres cannot hold: characters or numbers out of its range.
        return answer(422, "Validation error", [("request", "holds a value that cannot be stored or searched for")])
    return await _bug(_, e)


async def _unstorable(_: Request, e: Exception) -> Response:
    return answer(422, "Validation error", [("request", "holds text that is not valid Unicode")])


async def _bug(request: Request, e: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=e)
    return answer(500, "Internal error; it has been logged with this request's X-Request-ID")


def _field(place: Sequence[int | str]) -> str:
    """`body.spans.3.name` as users know it: `spans.3.name`."""
    parts = [str(p) for p in place]
    if len(parts) > 1 and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    return ".".join(parts)


def _message(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    return str(error["msg"]).removeprefix("Value error, ")


def _clean(said: str) -> str:
    return said.encode("utf-8", "replace").decode()
