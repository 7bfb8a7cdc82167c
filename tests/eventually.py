"""Waiting for facts with a deadline: the only clock a test may look at."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def eventually(fact: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
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
