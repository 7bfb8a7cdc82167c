"""A service that cannot do its work stops, says why, and leaves what it could not do to whoever comes next."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from eventually import eventually
from laboratory import laboratory
from steelyard.delivery import MostlyFailing
from steelyard.events import RunRequested
from steelyard.kafka import Cluster, Publisher, Readers
from steelyard.service import Service
from steelyard.settings import Settings


@pytest.fixture
async def asked(topics: Cluster) -> AsyncIterator[None]:
    publisher = Publisher(topics)
    await publisher.start()
    await publisher.publish([RunRequested(run_id=uuid4(), project_id=uuid4()) for _ in range(200)])
    await publisher.stop()
    yield


def broken(service: Service, handled: list[RunRequested]) -> Service:
    @service.on
    async def handle(event: RunRequested) -> None:
        handled.append(event)
        raise KeyError("a bug")

    return service


@pytest.mark.usefixtures("asked")
async def test_a_service_whose_messages_mostly_fail_does_not_wait_for_its_drain(
    topics: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The message that fails is never done: a stop that waits for it would take the whole drain."""
    settings, handled = Settings(http_port=0, drain_seconds=600), list[RunRequested]()
    running = asyncio.create_task(broken(Service("tests"), handled).run(settings, topics, stop=asyncio.Event()))
    await eventually(running.done, "it has stopped by itself")
    with pytest.raises(MostlyFailing, match="the last one: KeyError at"):
        running.result()
    assert "tests: cannot go on: 20 of the last 20 messages failed" in caplog.text
    with laboratory(topics, tmp_path) as lab:
        assert len(handled) == 20 and len(await lab.everything("runs.requested.dead")) == 19, (
            "it went on after it had given up"
        )
    assert await committed(topics) <= 19


async def committed(cluster: Cluster) -> int:
    readers = Readers(cluster)
    await readers.start()
    try:
        return sum((await readers.committed("tests", "runs.requested", 6)).values())
    finally:
        await readers.stop()
