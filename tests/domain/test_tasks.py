"""Ending what does not want to end."""

import asyncio

from steelyard.tasks import ended, rung


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed: list[int] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(1)
                if len(swallowed) == 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await ended([task])
    assert task.cancelled() and len(swallowed) == 2


async def test_a_bell_that_rings_while_its_waiter_is_cancelled_does_not_keep_it_alive() -> None:
    """What `asyncio.wait_for` of Python 3.11 gets wrong, and hung a stopping judge for ever."""
    for _ in range(200):
        bell = asyncio.Event()
        turns: list[int] = []

        async def loop(bell: asyncio.Event = bell, turns: list[int] = turns) -> None:
            while True:
                turns.append(1)
                await rung(bell, 5)

        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        bell.set()
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled() and len(turns) == 1
