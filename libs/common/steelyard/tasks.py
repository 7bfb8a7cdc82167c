"""Ending tasks and waiting with a limit, without losing a cancellation."""

import asyncio
from collections.abc import Iterable
from typing import Any


async def ended(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancelled until they have ended. One request may be swallowed on its way: `asyncio.wait_for` of Python 3.11 does
    so when what it waits for is done in the same moment, and libraries use it. A stop must not wait for ever for that."""
    waiting = [t for t in tasks if not t.done()]
    while waiting:
        for task in waiting:
            task.cancel()
        _, left = await asyncio.wait(waiting, timeout=1.0)
        waiting = list(left)


async def rung(bell: asyncio.Event, seconds: float) -> bool:
    """Whether the bell rang in time. Not `wait_for`: see above."""
    try:
        async with asyncio.timeout(seconds):
            await bell.wait()
    except TimeoutError:
        return False
    return True
