"""Writing on a user's behalf: safe to repeat by an Idempotency-Key, limited where it costs, retried when it collides."""

import asyncio
import hashlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from steelyard.store import once
from steelyard.store.database import Tx, sqlstate
from steelyard_api.access import Visit, Visitor
from steelyard_api.errors import Refused
from steelyard_api.shapes import Failure

log = logging.getLogger(__name__)
T = TypeVar("T")
COLLISIONS = ("40001", "40P01")
TRIES = 4
LONGEST_KEY = 255


class Conflict(Refused):
    def __init__(self, detail: str, *errors: tuple[str, str], after: int | None = None) -> None:
        super().__init__(409, detail, *errors, headers={"Retry-After": str(after)} if after else None)


class TooMany(Refused):
    def __init__(self, detail: str, seconds: float) -> None:
        super().__init__(429, detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


async def written(visitor: Visit, work: Callable[[Tx], Awaitable[T]]) -> T:
    """In one transaction; again when the database ended it for a deadlock with somebody else's."""
    for attempt in range(TRIES):
        try:
            async with visitor.database.begin(visitor.project) as tx:
                return await work(tx)
        except DBAPIError as e:
            if sqlstate(e) not in COLLISIONS or attempt == TRIES - 1:
                raise
            log.info("a transaction collided with another, again")
            await asyncio.sleep(random.uniform(0.005, 0.02) * 4**attempt)
    raise AssertionError("the last try returns or raises")


class Creation:
    """One creating request. `work` runs at most once for an Idempotency-Key, whatever dies in between: its effect and
    the remembered answer are one transaction."""

    def __init__(self, visitor: Visit, request: Request, key: str | None) -> None:
        self._visitor, self._request, self._key = visitor, request, key
        self.scope = f"{request.method} {request.url.path}"[:1000]

    @property
    def named(self) -> bool:
        """Whether the request has a key, so that it has to be a transaction of its own."""
        return self._key is not None

    async def make(self, work: Callable[[Tx], Awaitable[BaseModel]], status: int, most: int = 0) -> Response:
        """`most` creations a minute of this project by this kind of request; 0 is no limit."""
        asked = await self._fingerprint() if self._key is not None else b""
        return await written(self._visitor, lambda tx: self._make(tx, work, status, most, asked))

    async def _make(
        self, tx: Tx, work: Callable[[Tx], Awaitable[BaseModel]], status: int, most: int, asked: bytes
    ) -> Response:
        if self._key is not None:
            if not await once.alone(tx, self._visitor.project, self.scope, self._key):
                said = "a request with this key is still being worked on"
                raise Conflict(f"{said[0].upper()}{said[1:]}", ("Idempotency-Key", said), after=1)
            if (found := await once.recall(tx, self._visitor.project, self.scope, self._key)) is not None:
                return self._again(found, asked)
        if most:
            await self._count(tx, most)
        body = (await work(tx)).model_dump_json().encode()
        if self._key is not None:
            remembered = once.Remembered(asked, status, body)
            await once.remember(tx, self._visitor.project, self.scope, self._key, remembered)
        return Response(body, status, media_type="application/json")

    def _again(self, found: once.Remembered, asked: bytes) -> Response:
        if found.request_hash != asked:
            said = "was used for a request with another body"
            raise Refused(422, "Validation error", ("Idempotency-Key", said))
        headers = {"Idempotency-Replayed": "true"}
        return Response(found.response, found.status, headers, media_type="application/json")

    async def _count(self, tx: Tx, most: int) -> None:
        route = self._request.scope["route"].path
        wait = await once.take(tx, self._visitor.project, f"{self._request.method} {route}", most)
        if wait is not None:
            raise TooMany(f"At most {most} a minute for a project: try again in {math.ceil(wait) or 1} s", wait)

    async def _fingerprint(self) -> bytes:
        return hashlib.sha256(await self._request.body()).digest()


async def _creation(
    request: Request,
    visitor: Visitor,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=LONGEST_KEY,
            description="a word of yours that makes the request safe to repeat: within 24 hours the same request with the "
            "same key is answered with the first answer and does nothing again. Another body with it is a 422, a request "
            "that is still being worked on a 409.",
        ),
    ] = None,
) -> Creation:
    return Creation(visitor, request, key)


Creating = Annotated[Creation, Depends(_creation)]
CREATING: dict[int | str, dict[str, Any]] = {
    409: {
        "model": Failure,
        "description": "a request with this Idempotency-Key is still being worked on, or what it is about is not ready",
    }
}
