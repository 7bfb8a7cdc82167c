"""The window consumer in this process: what it takes, what it leaves, and what it does when nothing is free."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition

from eventually import eventually
from laboratory import job, laboratory
from steelyard.events import decode
from steelyard.kafka import Cluster, Readers, make_topics
from steelyard.positions import Positions
from steelyard.progress import Progress
from steelyard.window import Window


class Worker:
    """Jobs wait until they are let go."""

    def __init__(self) -> None:
        self.began: Counter[str] = Counter()
        self.partitions: Counter[int] = Counter()
        self.go = asyncio.Event()
        self.running = self.most = 0

    async def __call__(self, record: Any) -> None:
        self.began[decode(record.value).model_dump()["target"]] += 1
        self.partitions[record.partition] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go.wait()
        self.running -= 1


@asynccontextmanager
async def window(cluster: Cluster, worker: Worker, **settings: Any) -> AsyncIterator[Window]:
    settings = {"slots": 10, "drain_seconds": 5.0, "rebalance_drain_seconds": 0.2, "session_seconds": 6.0} | settings
    made = Window(cluster, "jobs.trace", "judge", worker, **settings)
    await made.start()
    try:
        yield made
    finally:
        worker.go.set()
        await made.stop()


async def ready(made: Window) -> None:
    async def well() -> bool:
        return await made.unwell() is None

    await eventually(well, "the window has its partitions")


async def sent(cluster: Cluster, folder: Path, count: int, name: str = "j") -> dict[tuple[int, int], str]:
    with laboratory(cluster, folder) as lab:
        return await lab.send(job(f"{name}{n}", 0) for n in range(count))


async def test_no_more_jobs_are_in_flight_than_there_are_slots(topics: Cluster, tmp_path: Path) -> None:
    worker = Worker()
    await sent(topics, tmp_path, 100)
    async with window(topics, worker, slots=7) as made:
        await eventually(lambda: worker.running == 7, "the slots are full")
        beat = made._beat
        await eventually(lambda: made._beat > beat, "it has looked for a free slot once more")
        worker.go.set()
        await eventually(lambda: len(worker.began) == 100, "all are done")
    assert set(worker.began.values()) == {1} and worker.most == 7


async def test_jobs_are_taken_from_all_partitions_in_turn(topics: Cluster, tmp_path: Path) -> None:
    worker = Worker()
    places = await sent(topics, tmp_path, 480)
    partitions = {p for p, _ in places}
    async with window(topics, worker, slots=48):
        await eventually(lambda: worker.running == 48, "the slots are full")
        assert len(worker.partitions) > len(partitions) // 2, "a few partitions got all the slots"
        assert max(worker.partitions.values()) <= 8


async def test_one_slow_job_does_not_let_its_partition_run_away(topics: Cluster, tmp_path: Path) -> None:
    """Repeats after a crash and memory are bounded by the span: a partition that far ahead is paused."""
    held = asyncio.Event()
    seen: list[int] = []

    async def work(record: Any) -> None:
        seen.append(record.offset)
        if record.offset == 0:
            await held.wait()

    with laboratory(topics, tmp_path) as lab:
        one_key = [job("same", 0) for _ in range(60)]
        await lab.send(one_key)
    made = Window(topics, "jobs.trace", "judge", work, slots=10, span=20, rebalance_drain_seconds=0.2)
    await made.start()
    try:
        await eventually(lambda: len(seen) == 20, "the span is used up")
        turns = made._turn
        await eventually(lambda: made._turn > turns + 5, "it has looked for more jobs again and again")
        assert len(seen) == 20, "the partition ran away from its oldest job"
        held.set()
        await eventually(lambda: len(seen) == 60, "it goes on when the oldest is done")
    finally:
        held.set()
        await made.stop()


async def test_a_worker_without_a_free_slot_keeps_its_partitions(topics: Cluster, tmp_path: Path) -> None:
    """Longer than the longest poll interval, with records waiting, beside a second member that would take over."""
    worker, other = Worker(), Worker()
    await sent(topics, tmp_path, 60)
    settings = {"slots": 4, "max_poll_seconds": 3.0, "starve_seconds": 0.5}
    async with window(topics, worker, **settings) as one, window(topics, other, **settings) as two:
        await ready(one)
        await ready(two)
        await eventually(lambda: one.in_flight == two.in_flight == 4, "both are full")
        generations = one._generation, two._generation
        await asyncio.sleep(7)  # more than twice the poll interval: this is the fact that is waited for
        assert (one._generation, two._generation) == generations, "a member was thrown out of its group"
        worker.go.set()
        other.go.set()
        await eventually(lambda: len(worker.began + other.began) == 60, "all are done")
    repeated = {t for t, n in (worker.began + other.began).items() if n > 1}
    # Only what was in flight when the second one joined may have begun twice.
    assert len(repeated) <= 4


async def test_what_was_finished_beyond_a_slow_job_is_not_repeated_by_the_next_owner(
    topics: Cluster, tmp_path: Path
) -> None:
    begun: list[int] = []

    async def stuck(record: Any) -> None:
        begun.append(record.offset)
        if record.offset == 0:
            await asyncio.Event().wait()

    with laboratory(topics, tmp_path) as lab:
        await lab.send([job("same", 0) for _ in range(30)])
    first = Window(topics, "jobs.trace", "judge", stuck, slots=10, drain_seconds=0.3, commit_seconds=0.1)
    await first.start()
    await eventually(lambda: len(begun) == 30, "all but the first are done")
    await first.stop()

    again: list[int] = []

    async def note(record: Any) -> None:
        again.append(record.offset)

    second = Window(topics, "jobs.trace", "judge", note, slots=10)
    await second.start()
    try:
        await eventually(lambda: again, "the slow one is repeated")
        await ready(second)
        with laboratory(topics, tmp_path) as lab:
            await lab.send([job("same", 0)])
        await eventually(lambda: len(again) == 2, "and what is new is done")
    finally:
        await second.stop()
    assert again == [0, 30]


class Noting:
    """Notes what it is given, by target and offset, and is done at once."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []

    async def __call__(self, record: Any) -> None:
        self.noted.append((decode(record.value).model_dump()["target"], record.offset))


async def test_of_a_topic_that_was_made_anew_nothing_is_skipped_by_who_read_the_old_one(
    topics: Cluster, tmp_path: Path
) -> None:
    """The new log has grown past the old position by then: its offset alone shows nothing."""
    noting = Noting()
    window = Window(topics, "jobs.trace", "judge", noting, slots=10, commit_seconds=0.1)
    await window.start()
    try:
        with laboratory(topics, tmp_path) as lab:
            await lab.send([job("same", 0)] * 5)
            await eventually(lambda: len(noting.noted) == 5, "the old log is read")
            await lab.make_anew("jobs.trace")
            await lab.send([job("same", 0.5)] * 8)
            await eventually(lambda: set(range(8)) <= {o for _, o in noting.noted[5:]}, "all of the new log is read")
            await ready(window)
            await lab.read_to_the_end("jobs.trace", by="judge")
    finally:
        await window.stop()


async def test_a_commit_about_a_topic_that_is_gone_is_not_believed_by_the_next_owner(
    topics: Cluster, tmp_path: Path
) -> None:
    """The broker forgets a deleted topic's commits; a member that had not noticed yet may commit them to the new one."""
    first, second = Noting(), Noting()
    with laboratory(topics, tmp_path) as lab:
        await lab.send([job("same", 0)] * 5)
        window = Window(topics, "jobs.trace", "judge", first, slots=10, commit_seconds=0.1)
        await window.start()
        await eventually(lambda: len(first.noted) == 5, "the old log is read")
        await window.stop()
        partition = next(iter(await lab.send([job("same", 0)] * 5)))[0]
        await lab.make_anew("jobs.trace")
        await lab.send([job("same", 0)] * 7)
        await commit(
            topics, "judge", TopicPartition(topics.topic("jobs.trace"), partition), 5, Progress().note(uuid4())
        )
        readers = Readers(topics)
        await readers.start()
        assert await readers.committed("judge", "jobs.trace", 24) == {}
        await readers.stop()
        window = Window(topics, "jobs.trace", "judge", second, slots=10)
        await window.start()
        await eventually(
            lambda: [o for _, o in second.noted] == list(range(7)), "the new log is read from its beginning"
        )
        await window.stop()


async def commit(cluster: Cluster, service: str, tp: TopicPartition, offset: int, note: str) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.bootstrap, group_id=cluster.group(service), enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([tp])
    await consumer.commit({tp: OffsetAndMetadata(offset, note)})
    await consumer.stop()


async def test_a_window_of_whose_topic_nobody_reads_a_partition_is_not_ready(topics: Cluster, tmp_path: Path) -> None:
    window = Window(topics, "jobs.trace", "judge", Noting(), slots=10)
    await window.start()
    try:
        await ready(window)
        with laboratory(topics, tmp_path) as lab:
            await lab.delete("jobs.trace")

            async def unread() -> bool:
                return "no member of the group reads" in (await window.unwell() or "")

            await eventually(unread, "it says that its partitions have no owner")
            await make_topics(topics)
            await ready(window)
    finally:
        await window.stop()


class Seeking:
    """A consumer of which nothing is wanted but where it is sent."""

    def __init__(self) -> None:
        self.sought: dict[TopicPartition, int] = {}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.sought[tp] = offset


async def test_what_was_fetched_while_the_last_commit_was_looked_up_is_delivered_again(topics: Cluster) -> None:
    """It is dropped, since nobody knew yet where to begin: without a seek the jobs in it would be skipped."""
    begun, fresh = (TopicPartition(topics.topic("jobs.trace"), p) for p in (0, 1))
    consumer, positions = Seeking(), Positions(topics, "jobs.trace", "judge")
    await commit(topics, "judge", begun, 0, Progress().note())
    await positions.start(lambda: consumer)
    await positions.assigned([begun, fresh])
    await positions.stop()
    assert consumer.sought == {begun: 0, fresh: 0}
