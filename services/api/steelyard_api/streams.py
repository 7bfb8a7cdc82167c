"""Arrays of any length, by contract bare ones: read and sent in pages, so that no run's size is held in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from steelyard.store.database import Tx
from steelyard_api.access import Visit

Rows = Sequence[Mapping[str, Any]]
# The rows behind one, or the first ones; in an order that its key tells.
Page = Callable[[Tx, Any], Awaitable[Rows]]


async def array_in_pages(visit: Visit, page: Page, key: Callable[[Mapping[str, Any]], Any], size: int) -> Response:
    """The first page is read before anything is answered, so what fails then has a status of its own."""
    first = await _read(visit, page, None)
    if len(first) < size:
        return Response(b"[" + encoded(first) + b"]", media_type="application/json")

    async def parts() -> AsyncIterator[bytes]:
        rows = first
        yield b"[" + encoded(rows)
        while len(rows) == size:
            rows = await _read(visit, page, key(rows[-1]))
            if rows:
                yield b"," + encoded(rows)
        yield b"]"

    return StreamingResponse(parts(), media_type="application/json")


def encoded(rows: Rows) -> bytes:
    """Without the brackets. Checking what we wrote ourselves would take longer than reading it."""
    return orjson.dumps(list(rows), default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)[1:-1]


async def _read(visit: Visit, page: Page, after: Any) -> Rows:
    async with visit.database.begin(visit.project) as tx:
        return await page(tx, after)
