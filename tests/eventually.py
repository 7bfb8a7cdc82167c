"""Waiting for facts with a deadline: the only clock a test may look at. It is generous, for a machine may be busy with other
things, and only what never becomes true waits for it."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

# Of facts about one thing; a run through all services may take several such.
DEADLINE = 180.0


async def eventually(fact: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """The first truthy answer; an assertion that names what never became true."""
    deadline = time.monotonic() + seconds
    while True:
        answer = fact()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.05)
