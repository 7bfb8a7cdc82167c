"""What the laws need to look at: jobs sent, calls noted, outcomes published, offsets committed."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from eventually import eventually
from forkserver import fork
from steelyard.events import Owed, TraceJob, decode, topics
from steelyard.incarnations import incarnations
from steelyard.kafka import Cluster, Publisher, Readers, make_topics
from steelyard.progress import remembered
from steelyard_local.processes import Process, free_port

RUN = uuid4()


@dataclass
class Laboratory:
    cluster: Cluster
    folder: Path
    workers: list[Process] = field(default_factory=list)

    @property
    def calls(self) -> Path:
        return self.folder / "calls"

    def start(self, slots: int = 200, **environment: str) -> Process:
        env = os.environ | {
            "KAFKA_BOOTSTRAP": self.cluster.bootstrap,
            "TOPIC_PREFIX": self.cluster.prefix,
            "KAFKA_SESSION_SECONDS": "6",
            "HTTP_PORT": str(free_port()),
            **environment,
        }
        script = str(Path(__file__).with_name("law_worker.py"))
        log = (self.folder / f"worker-{len(self.workers)}.log").open("wb")
        worker = fork([sys.executable, script, str(self.calls), str(slots)], env, log, None)
        self.workers.append(worker)
        return worker

    def said(self) -> str:
        return "".join(p.read_text() for p in sorted(self.folder.glob("worker-*.log")))

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def began(self) -> Counter[str]:
        return Counter(target for verb, target, _ in self._notes() if verb == "began")

    def ended(self) -> Counter[str]:
        return Counter(target for verb, target, _ in self._notes() if verb == "ended")

    def _notes(self) -> Iterator[tuple[str, str, str]]:
        if self.calls.exists():
            for line in self.calls.read_text().splitlines():
                verb, target, pid = line.split(" ")
                yield verb, target, pid

    async def send(self, jobs: Iterable[TraceJob]) -> dict[tuple[int, int], str]:
        """Where each job's message is: (partition, offset) to target."""
        publisher = Publisher(self.cluster)
        await publisher.start()
        try:
            sent = list(jobs)
            places = await publisher.publish(sent)
            return {(p.partition, p.offset): job.target for p, job in zip(places, sent, strict=True)}
        finally:
            await publisher.stop()

    async def outcomes(self) -> Counter[str]:
        return Counter(decode(r.value).model_dump()["target"] for r in await self.everything("scores.trace"))

    async def everything(self, topic: str) -> list[Any]:
        """Every record of a topic, from its beginning to its end as it is now."""
        name = self.cluster.topic(topic)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.cluster.bootstrap, group_id=None)
        await consumer.start()
        try:
            partitions = [TopicPartition(name, p) for p in await _partitions(consumer, name)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            found: list[Any] = []
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
            return found
        finally:
            await consumer.stop()

    async def repeat(self, topic: str) -> None:
        """Every record of a topic once more, as a redelivery would bring it."""
        records = await self.everything(topic)
        publisher = Publisher(self.cluster)
        await publisher.start()
        try:
            await publisher.send([(topic, r.key, r.value, ()) for r in records])
        finally:
            await publisher.stop()

    async def make_anew(self, *topics: str) -> None:
        """Deleted, and made again with nothing in them."""
        await self.delete(*topics)
        await make_topics(self.cluster)

    async def delete(self, *topics: str) -> None:
        names = [self.cluster.topic(t) for t in topics]
        admin = AIOKafkaAdminClient(bootstrap_servers=self.cluster.bootstrap)
        await admin.start()

        async def gone() -> bool:
            return not await incarnations(admin._client, names)

        try:
            await admin.delete_topics(names)
            await eventually(gone, f"{', '.join(names)} are deleted")
        finally:
            await admin.close()

    async def read_to_the_end(self, topic: str, by: str) -> None:
        """Waits until a service has committed all that the topic holds."""
        readers, partitions = Readers(self.cluster), topics()[topic]
        await readers.start()

        async def read() -> bool:
            ends, committed = await readers.ends(topic, partitions), await readers.committed(by, topic, partitions)
            return all(committed.get(p, 0) >= end for p, end in ends.items())

        try:
            await eventually(read, f"{by} has read all of {topic}")
        finally:
            await readers.stop()

    async def covered(self, places: dict[tuple[int, int], str]) -> set[str]:
        """Targets that the committed offsets and their notes say are finished."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.cluster.bootstrap)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(self.cluster.group("judge"))
        finally:
            await admin.close()
        said = {tp.partition: (o.offset, remembered(o.offset, o.metadata)) for tp, o in found.items()}
        return {
            target
            for (partition, offset), target in places.items()
            if partition in said and (offset < said[partition][0] or offset in said[partition][1])
        }


async def _partitions(consumer: Any, name: str) -> set[int]:
    async def known() -> Any:
        await consumer._client.force_metadata_update()
        return consumer.partitions_for_topic(name)

    return set(await eventually(known, f"there is a topic {name}"))


@contextmanager
def laboratory(cluster: Cluster, folder: Path) -> Iterator[Laboratory]:
    lab = Laboratory(cluster, folder)
    try:
        yield lab
    finally:
        lab.close()


def job(target: str, seconds: float | str) -> TraceJob:
    owed = (Owed(metric="m", dispatch_no=1, attempt=0),)
    trace = uuid5(NAMESPACE_OID, target)
    return TraceJob(run_id=RUN, project_id=RUN, target=target, trace_id=trace, model=str(seconds), owed=owed)
