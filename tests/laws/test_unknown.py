"""A message of a newer version, as a rolled-back deploy leaves it: it waits, nobody else does, and there is a way past it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prometheus_client import REGISTRY

from eventually import eventually
from laboratory import job, laboratory
from steelyard.events import RunRequested
from steelyard.kafka import Cluster, Publisher, Readers
from steelyard.positions import Positions
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.window import Window
from test_window_inside import Noting

TOPIC = RunRequested.topic


def run(number: int) -> RunRequested:
    return RunRequested(run_id=UUID(int=number), project_id=UUID(int=0))


def newer(event: Any) -> bytes:
    return bytes(event.encode().replace(b'"version":1', b'"version":9'))


@asynccontextmanager
async def serving(cluster: Cluster, **settings: Any) -> AsyncIterator[list[int]]:
    """A service that notes whom it hears of."""
    service, heard, stop = Service("tests"), list[int](), asyncio.Event()

    @service.on
    async def hear(runs: Sequence[RunRequested]) -> None:
        heard.extend(r.run_id.int for r in runs)

    running = asyncio.create_task(service.run(Settings(http_port=0, **settings), cluster, stop=stop))
    try:
        yield heard
    finally:
        stop.set()
        await running


async def send(cluster: Cluster, messages: Sequence[tuple[bytes, bytes]]) -> list[Any]:
    publisher = Publisher(cluster)
    await publisher.start()
    try:
        return await publisher.send([(TOPIC, key, value, ()) for key, value in messages])
    finally:
        await publisher.stop()


async def test_a_message_of_a_newer_version_stops_nobody_and_is_there_when_somebody_understands_it(
    topics: Cluster, tmp_path: Path
) -> None:
    early = [(run(n).key(), run(n).encode()) for n in range(30)]
    place, *_ = await send(topics, [(early[0][0], newer(run(0))), *early])
    readers = Readers(topics)
    await readers.start()
    try:
        async with serving(topics) as heard:
            await eventually(lambda: set(heard) == set(range(30)), "all that is understood is handled")
            waiting = REGISTRY.get_sample_value(
                "steelyard_not_understood", {"service": "tests", "topic": topics.topic(TOPIC)}
            )
            assert waiting == 1
        committed = await readers.committed("tests", TOPIC, 6)
        assert committed[place.partition] == place.offset, "a commit passed what nobody has understood"

        async with serving(topics) as heard:
            more = [(run(n).key(), run(n).encode()) for n in range(30, 40)]
            await send(topics, more)
            await eventually(lambda: set(heard) == set(range(30, 40)), "what comes then is handled")
        assert len(heard) == 10, "what had been handled behind it was handled again"

        async with serving(topics, set_aside_unknown=True):
            with laboratory(topics, tmp_path) as lab:

                async def letters() -> list[Any]:
                    return await lab.everything(f"{TOPIC}.dead")

                (letter,) = await eventually(letters, "it is a dead letter")
                assert letter.value == newer(run(0)) and b"newer than this service" in dict(letter.headers)["x-reason"]
                await lab.read_to_the_end(TOPIC, by="tests")
    finally:
        await readers.stop()


async def test_jobs_of_a_newer_version_hold_no_slot(topics: Cluster, tmp_path: Path) -> None:
    """A rolled-back dispatcher leaves a whole window of them."""
    noting = Noting()
    with laboratory(topics, tmp_path) as lab:
        publisher = Publisher(topics)
        await publisher.start()
        jobs = [job(f"newer{n}", 0) for n in range(10)]
        await publisher.send([("jobs.trace", j.key(), newer(j), ()) for j in jobs])
        await publisher.stop()
        await lab.send(job(f"j{n}", 0) for n in range(20))

        def unknown(record: Any) -> str | None:
            return "newer" if b'"version":9' in record.value else None

        made = Window(topics, "jobs.trace", "judge", noting, slots=2, puzzling=unknown)
        await made.start()
        try:
            await eventually(lambda: len(noting.noted) == 20, "the others are judged")
            assert made.in_flight == 0
        finally:
            await made.stop()


async def test_after_a_minute_readiness_says_what_waits_and_where(topics: Cluster) -> None:
    now = [0.0]
    positions = Positions(topics, TOPIC, "tests", clock=lambda: now[0])
    record = (await send(topics, [(b"k", newer(run(0)))]))[0]
    await positions.start(lambda: None)
    positions.put_off(record, "it is newer")
    assert "waits" not in (await positions.unwell() or "")
    now[0] = 61.0
    why = await positions.unwell()
    await positions.stop()
    assert why == f"{record.topic} {record.partition} waits at offset {record.offset} for another version: it is newer"
