"""The law of the outbox: what was committed is published, what was rolled back is not, whatever dies in between."""

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from eventually import eventually
from laboratory import laboratory
from steelyard.events import RunRequested, decode
from steelyard.kafka import Cluster, Publisher
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox, Relay

OUTBOX: Outbox[RunRequested] = Outbox()


class Broker:
    """Acknowledges when told to; remembers what it was sent."""

    def __init__(self, open_at_once: bool = True) -> None:
        self.got: list[UUID] = []
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        if open_at_once:
            self.open.set()

    async def send(self, messages: Iterable[tuple[str, bytes | None, bytes | None, Any]]) -> None:
        for _, _, value, _ in messages:
            event = decode(value)
            assert isinstance(event, RunRequested)
            self.got.append(event.run_id)
        self.asked.set()
        await self.open.wait()


def event() -> RunRequested:
    return RunRequested(run_id=uuid4(), project_id=uuid4())


async def rows(database: Database) -> int:
    async with database.begin() as tx:
        return int((await tx.execute(text("SELECT count(*) FROM outbox"))).scalar_one())


async def test_transactions_that_commit_out_of_order_are_all_published(database: Database) -> None:
    broker = Broker()
    relay = asyncio.create_task(Relay(database, poll_seconds=0.2).run(broker))
    first, second, third = event(), event(), event()
    try:
        async with database.begin() as slow:
            await OUTBOX.put(slow, first)  # takes the lowest id and commits last
            async with database.begin() as quick:
                await OUTBOX.put(quick, second)
            await eventually(lambda: second.run_id in broker.got, "the one that committed first is published")
            assert first.run_id not in broker.got
            async with database.begin() as quick:
                await OUTBOX.put(quick, third)
            await eventually(lambda: third.run_id in broker.got, "the third too")
        await eventually(lambda: first.run_id in broker.got, "the late one is not skipped")
        await eventually(lambda: rows_are_gone(database), "nothing is owed any more")
    finally:
        relay.cancel()
    assert sorted(broker.got) == sorted([first.run_id, second.run_id, third.run_id])


async def rows_are_gone(database: Database) -> bool:
    return await rows(database) == 0


async def test_what_was_rolled_back_is_never_published(database: Database) -> None:
    broker, kept, dropped = Broker(), event(), event()
    with pytest.raises(RuntimeError):
        async with database.begin() as tx:
            await OUTBOX.put(tx, dropped)
            raise RuntimeError("the writer changed its mind")
    async with database.begin() as tx:
        await OUTBOX.put(tx, kept)
    assert await Relay(database).turn(broker) == 1
    assert broker.got == [kept.run_id]


async def test_a_relay_that_dies_between_produce_and_mark_sends_again_and_loses_nothing(database: Database) -> None:
    sent = event()
    async with database.begin() as tx:
        await OUTBOX.put(tx, sent)
    dying = Broker(open_at_once=False)
    turn = asyncio.create_task(Relay(database).turn(dying))
    await dying.asked.wait()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    assert dying.got == [sent.run_id]
    assert await rows(database) == 1, "the row was marked although nobody acknowledged it"

    next_one = Broker()
    assert await Relay(database).turn(next_one) == 1
    assert next_one.got == [sent.run_id]
    assert await rows(database) == 0


async def test_a_relay_process_killed_between_produce_and_mark_loses_nothing(
    database: Database, urls: Urls, topics: Cluster, tmp_path: Path
) -> None:
    events = [event() for _ in range(5)]
    async with database.begin() as tx:
        await OUTBOX.put(tx, *events)
    environment = {
        **os.environ,
        **urls.environment(),
        "KAFKA_BOOTSTRAP": topics.bootstrap,
        "TOPIC_PREFIX": topics.prefix,
    }
    script = [sys.executable, str(Path(__file__).with_name("relay_worker.py")), str(tmp_path / "acknowledged")]
    process = await asyncio.create_subprocess_exec(*script, env=environment)
    try:
        await eventually((tmp_path / "acknowledged").exists, "the broker has acknowledged")
    finally:
        process.kill()
        await process.wait()
    # Postgres notices the dead connection and gives the rows back.
    publisher = Publisher(topics)
    await publisher.start()

    async def relayed() -> bool:
        return await Relay(database).turn(publisher) == 5

    await eventually(relayed, "the next relay sends them again")
    await publisher.stop()
    assert await rows(database) == 0
    with laboratory(topics, tmp_path) as lab:
        published = [decode(r.value) for r in await lab.everything("runs.requested")]
    assert sorted(e.key() for e in published) == sorted([e.key() for e in events] * 2)


async def test_two_relays_share_the_work_and_send_nothing_twice(database: Database) -> None:
    events = [event() for _ in range(300)]
    async with database.begin() as tx:
        await OUTBOX.put(tx, *events)
    slow, quick = Broker(open_at_once=False), Broker()
    holding = asyncio.create_task(Relay(database, page=100).turn(slow))
    await slow.asked.wait()
    relay = Relay(database, page=100)
    while await relay.turn(quick):
        pass
    slow.open.set()
    assert await holding == 100
    assert sorted(slow.got + quick.got) == sorted(e.run_id for e in events)


async def test_writers_that_commit_and_roll_back_at_random_leave_exactly_what_they_committed(
    database: Database,
) -> None:
    broker = Broker()
    relays = [asyncio.create_task(Relay(database, poll_seconds=0.1).run(broker)) for _ in range(2)]
    committed: list[UUID] = []

    async def writer(n: int) -> None:
        for k in range(20):
            written = event()
            try:
                async with database.begin() as tx:
                    await OUTBOX.put(tx, written)
                    await asyncio.sleep(((n * 7 + k * 3) % 5) / 1000)
                    if (n + k) % 3 == 0:
                        raise RuntimeError
            except RuntimeError:
                continue
            committed.append(written.run_id)

    await asyncio.gather(*(writer(n) for n in range(6)))
    await eventually(lambda: rows_are_gone(database), "all is published")
    for relay in relays:
        relay.cancel()
    assert sorted(broker.got) == sorted(committed)
