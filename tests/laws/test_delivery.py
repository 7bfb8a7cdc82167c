"""What the frame does with a message: handled, waited for, or buried with its reason, and never skipped."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson
import pytest

from steelyard import telemetry
from steelyard.delivery import Delivery, Limit, MostlyFailing
from steelyard.errors import Later, Never
from steelyard.events import Event, RunRequested


@dataclass
class Record:
    value: bytes
    offset: int = 0
    topic: str = "runs.requested"
    partition: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class Post:
    """Remembers; fails as often as told."""

    published: list[Event] = field(default_factory=list)
    buried: list[tuple[int, str]] = field(default_factory=list)
    away: int = 0

    async def publish(self, events: Iterable[Event]) -> None:
        if self.away:
            self.away -= 1
            raise Later("the broker is away", after=0)
        self.published += events

    async def bury(self, topic: str, record: Any, reason: str, service: str) -> None:
        self.buried.append((record.offset, reason))


def run(number: int) -> RunRequested:
    return RunRequested(run_id=UUID(int=number), project_id=UUID(int=0))


def records(*numbers: int) -> list[Record]:
    return [Record(run(n).encode(), offset=n) for n in numbers]


def delivery(post: Post, **limit: int) -> Delivery:
    return Delivery("tests", "runs.requested", post, Limit(**limit))


async def test_one_bad_message_does_not_take_its_neighbours_along() -> None:
    post, handled = Post(), list[int]()

    async def handle(events: Sequence[RunRequested]) -> None:
        numbers = [e.run_id.int for e in events]
        if 5 in numbers:
            raise ValueError("five is a bug")
        handled.extend(numbers)

    await delivery(post).many([*records(*range(8)), Record(b"not an event", offset=99)], handle)
    assert sorted(handled) == [0, 1, 2, 3, 4, 6, 7]
    assert [offset for offset, _ in post.buried] == [99, 5]
    assert post.buried[1][1].startswith("ValueError at "), "the exception's text may be a user's words"


async def test_a_dependency_that_is_away_is_waited_for_and_nothing_is_buried() -> None:
    post, tries = Post(), list[int]()

    async def handle(event: RunRequested) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise Later("not yet", after=0)

    await delivery(post).one(records(1)[0], handle)
    assert (len(tries), post.buried) == (4, [])


async def test_outputs_are_published_before_the_message_is_done() -> None:
    post = Post(away=2)

    async def handle(event: RunRequested) -> list[RunRequested]:
        return [run(7), run(8)]

    await delivery(post).one(records(1)[0], handle)
    assert [e.run_id.int for e in post.published if isinstance(e, RunRequested)] == [7, 8]


async def test_an_output_that_the_broker_does_not_take_yet_is_sent_again_and_the_handler_goes_on() -> None:
    """Beginning anew would cut off what the handler has under way: calls that are paid for."""
    post, began = Post(away=2), list[int]()

    async def handle(event: RunRequested) -> AsyncIterator[RunRequested]:
        began.append(1)
        yield run(7)
        yield run(8)

    await delivery(post).one(records(1)[0], handle)
    assert [e.run_id.int for e in post.published if isinstance(e, RunRequested)] == [7, 8] and began == [1]


@pytest.mark.parametrize("how", ["the broker refuses", "it is cancelled"])
async def test_when_a_message_is_done_so_is_its_handler(how: str) -> None:
    """A handler cut off between two outputs ends before its message does, and not when somebody collects it."""
    ended, reached = list[str](), asyncio.Event()

    class Refusing(Post):
        async def publish(self, events: Iterable[Event]) -> None:
            reached.set()
            if how == "it is cancelled":
                await asyncio.Event().wait()
            raise Never("too large")

    async def handle(event: RunRequested) -> AsyncIterator[RunRequested]:
        try:
            yield run(7)
        finally:
            await asyncio.sleep(0)  # an ending takes its turns of the loop
            ended.append(how)

    delivering = asyncio.create_task(delivery(Refusing()).one(records(1)[0], handle))
    await reached.wait()
    if how == "it is cancelled":
        delivering.cancel()
    await asyncio.wait([delivering])
    assert ended == [how]


@pytest.mark.parametrize("error", [Never("refused"), KeyError("a bug")])
async def test_what_can_never_work_is_a_dead_letter(error: Exception) -> None:
    post = Post()

    async def handle(event: RunRequested) -> None:
        raise error

    await delivery(post).one(records(3)[0], handle)
    assert [offset for offset, _ in post.buried] == [3]


async def test_when_most_messages_fail_the_service_stops_instead_of_burying_them_all() -> None:
    post = Post()

    async def handle(events: Sequence[RunRequested]) -> None:
        raise RuntimeError("broken")

    with pytest.raises(MostlyFailing, match="RuntimeError at "):
        await delivery(post, at_least=5).many(records(*range(100)), handle)
    assert len(post.buried) == 4


async def test_the_odd_failure_among_many_does_not_stop_anything() -> None:
    post = Post()

    async def handle(event: RunRequested) -> None:
        if event.run_id.int % 4 == 0:
            raise RuntimeError("now and then")

    deliver = delivery(post, at_least=5)
    for record in records(*range(200)):
        await deliver.one(record, handle)
    assert len(post.buried) == 50


async def test_an_event_of_a_newer_version_waits_instead_of_being_buried() -> None:
    post = Post()
    newer = Record(orjson.dumps({**orjson.loads(run(1).encode()), "version": 99}))

    async def handle(event: RunRequested) -> None:
        pytest.fail("it was handled")

    waiting = asyncio.create_task(delivery(post).one(newer, handle))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    waiting.cancel()
    assert not done and not post.buried


async def test_a_trace_context_goes_on_into_what_a_handler_publishes() -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    record = Record(run(1).encode(), headers=(("traceparent", parent.encode()), ("x-other", b"\xff")))
    seen = list[tuple[str, bytes]]()

    async def handle(event: RunRequested) -> None:
        seen.extend(telemetry.headers())

    await delivery(Post()).one(record, handle)
    assert [name for name, _ in seen] == ["traceparent"] and b"ab" * 16 in seen[0][1]
