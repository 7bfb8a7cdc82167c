"""How traces are let into memory, and how a pair that is suspected of killing judges is kept apart."""

import asyncio
from collections.abc import Awaitable

from steelyard_judge.admission import Admission
from steelyard_judge.quarantine import Quarantine


async def settle() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def hold(admission: Admission, size: int, name: str, log: list[str], free: asyncio.Event) -> None:
    async with admission.ticket(size):
        log.append(name)
        await free.wait()


async def test_traces_that_do_not_fit_together_go_one_after_the_other_in_turn() -> None:
    admission, log = Admission(10), list[str]()
    free = {name: asyncio.Event() for name in "abc"}
    sizes = {"a": 6, "b": 6, "c": 1}
    tasks = [asyncio.create_task(hold(admission, sizes[n], n, log, free[n])) for n in "abc"]
    await settle()
    assert log == ["a"]  # c would fit, but b was there before it
    free["a"].set()
    await settle()
    assert log == ["a", "b", "c"]
    free["b"].set()
    free["c"].set()
    await asyncio.gather(*tasks)
    assert admission.used == 0


async def test_a_trace_larger_than_the_budget_goes_alone_and_nobody_waits_for_ever() -> None:
    admission, log, free = Admission(10), list[str](), asyncio.Event()
    free.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*(hold(admission, 50, str(n), log, free) for n in range(5)))
    assert log == ["0", "1", "2", "3", "4"]


async def test_what_a_trace_did_not_need_is_given_to_others_at_once() -> None:
    admission, log, free = Admission(10), list[str](), asyncio.Event()
    async with admission.ticket(10) as ticket:
        other = asyncio.create_task(hold(admission, 8, "other", log, free))
        await settle()
        assert log == []
        ticket.shrink(2)
        await settle()
        assert log == ["other"]
    free.set()
    await other
    assert admission.used == 0


async def test_whoever_gives_up_waiting_holds_up_nobody() -> None:
    admission, log, free = Admission(10), list[str](), asyncio.Event()
    free.set()
    async with admission.ticket(10):
        first, second = (asyncio.create_task(hold(admission, 9, n, log, free)) for n in ("first", "second"))
        await settle()
        first.cancel()
        await settle()
    await second
    assert log == ["second"] and admission.used == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_nothing_is_under_way_beside_a_suspect() -> None:
    quarantine, log = Quarantine(), list[str]()
    ended = {name: asyncio.Event() for name in ("early", "suspect", "late")}

    async def job(name: str) -> None:
        async with quarantine.alone() if name == "suspect" else quarantine.beside():
            log.append(f"{name} begins")
            await ended[name].wait()
            log.append(f"{name} ends")

    tasks: list[Awaitable[None]] = []
    for name in ("early", "suspect", "late"):
        tasks.append(asyncio.create_task(job(name)))
        await settle()
    for name in ("early", "suspect", "late"):
        ended[name].set()
        await settle()
    await asyncio.gather(*tasks)
    assert log == [f"{n} {verb}" for n in ("early", "suspect", "late") for verb in ("begins", "ends")]


async def test_suspects_have_a_judge_for_half_of_its_time_at_most() -> None:
    clock = Clock()
    quarantine, turns = Quarantine(clock, wait=lambda _: asyncio.sleep(0)), list[float]()
    async with quarantine.alone():
        clock.now += 30
    async with quarantine.beside():
        second = asyncio.create_task(note(quarantine, turns, clock))
        await settle()
        assert quarantine.taken and not turns
        # Others still begin: the suspect waits until they had what it took.
        async with asyncio.timeout(30), quarantine.beside():
            clock.now += 30
            await settle()
    await second
    assert turns == [60.0]


async def note(quarantine: Quarantine, turns: list[float], clock: Clock) -> None:
    async with quarantine.alone():
        turns.append(clock.now)


async def test_where_nobody_else_is_there_suspects_wait_for_nobody() -> None:
    clock = Clock()
    quarantine, turns = Quarantine(clock), list[float]()
    for _ in range(3):
        async with asyncio.timeout(30):
            await note(quarantine, turns, clock)
        clock.now += 30
    assert len(turns) == 3
