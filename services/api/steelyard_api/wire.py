"""Around every request: its id, its size, and JSON read strictly."""

import gzip
import zlib
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from opentelemetry.trace import SpanKind
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steelyard import telemetry
from steelyard_api.errors import answer

REQUEST_ID = "x-request-id"


class RequestId:
    """X-Request-ID is echoed, or made: the one word that a user and a log have in common."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((v for k, v in scope["headers"] if k == REQUEST_ID.encode()), b"")[:200]
        said = given if given and given.isascii() and given.decode().isprintable() else str(uuid4()).encode()
        scope["request_id"] = said.decode()

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), said)]
            await send(message)

        # The caller's trace goes on through whatever the request announces.
        received = [(k.decode("latin-1"), v) for k, v in scope["headers"]]
        with telemetry.continued(f"{scope['method']} {scope['path']}", received, SpanKind.SERVER):
            return await self._app(scope, receive, respond)


class TooLarge(HTTPException):
    """An HTTPException, because FastAPI turns whatever else reading a body raises into a 400."""

    def __init__(self, most: int) -> None:
        said = f"The body is larger than {most // 1_000_000} MB (MAX_BODY_MB)"
        super().__init__(413, said, {"Connection": "close"})


class BodyLimit:
    """A body over the limit is refused as soon as that is known: by its header, or by what has arrived."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._most:
            refusal = TooLarge(self._most)
            return await answer(413, refusal.detail, (), refusal.headers)(scope, receive, send)
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise TooLarge(self._most)
            return message

        return await self._app(scope, limited, send)


class StrictRequest(Request):
    """orjson refuses what JSON does not have: NaN, Infinity, lone surrogates, bytes that are not UTF-8."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = _unpacked(await super().body(), self.headers.get("content-encoding", ""), self._most())
        return self._body

    async def json(self) -> Any:
        return orjson.loads(await self.body())

    def _most(self) -> int:
        return int(self.app.state.most_bytes)


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """gzip is understood, and its bombs are: no more is unpacked than would have been accepted unpacked."""
    if encoding.lower() != "gzip":
        return body
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        out = unpacker.decompress(body, most + 1)
    except (zlib.error, gzip.BadGzipFile):
        return b"\x00not gzip"
    if len(out) > most:
        raise TooLarge(most)
    return out
