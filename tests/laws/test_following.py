"""What each process hears of a broadcast: all of it, from its beginning, before it is ready, and on from there."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from eventually import eventually
from laboratory import laboratory
from steelyard.errors import Later
from steelyard.events import ProviderClosed
from steelyard.following import Following
from steelyard.kafka import Cluster, Publisher

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def closed(model: str, account: str = "openai 1") -> ProviderClosed:
    return ProviderClosed(account=account, model=model, at=NOW, until=NOW + timedelta(seconds=30), why="rate limited")


def noted(models: list[str]) -> Callable[[ProviderClosed], None]:
    return lambda event: models.append(event.model)


@asynccontextmanager
async def publishing(cluster: Cluster) -> AsyncIterator[Publisher]:
    publisher = Publisher(cluster)
    await publisher.start()
    yield publisher
    await publisher.stop()


async def test_each_follower_hears_everything_before_it_is_ready_and_what_comes_then(topics: Cluster) -> None:
    heard: tuple[list[str], list[str]] = [], []
    async with publishing(topics) as publisher:
        await publisher.publish([closed("a"), closed("b")])
        followers = [Following(topics, ProviderClosed, noted(models)) for models in heard]
        for f in followers:
            await f.start()
        assert heard == (["a", "b"], ["a", "b"])
        await publisher.publish([closed("c")])
        await eventually(lambda: heard == (["a", "b", "c"],) * 2, "both hear what is said now")
    for f in followers:
        await f.stop()


async def test_a_closing_of_an_hour_ago_is_over_for_a_process_that_starts_now_and_one_that_comes_counts_in_full(
    topics: Cluster,
) -> None:
    heard = list[ProviderClosed]()
    async with publishing(topics) as publisher:
        await publisher.publish([closed("old")])
        follower = Following(topics, ProviderClosed, heard.append, clock=lambda: time.time() + 3600)
        await follower.start()
        assert [e.seconds < 1 and not e.opens for e in heard] == [True]
        await publisher.publish([closed("new")])
        await eventually(lambda: len(heard) == 2, "what comes now is heard")
        assert heard[1].seconds == 30, "whatever the clocks say"
    await follower.stop()


async def test_what_cannot_be_read_or_handled_keeps_nobody_from_the_rest(topics: Cluster) -> None:
    heard = list[str]()

    def hear(event: ProviderClosed) -> None:
        if event.model == "odd":
            raise ValueError("a bug")
        heard.append(event.model)

    async with publishing(topics) as publisher:
        newer = closed("b").encode().replace(b'"version":1', b'"version":9')
        await publisher.send([("providers.closed", b"k", value, ()) for value in (b"{", b"", newer)])
        await publisher.publish([closed("odd"), closed("a")])
    follower = Following(topics, ProviderClosed, hear)
    await follower.start()
    assert heard == ["a"]
    await follower.stop()


async def test_a_topic_that_was_made_anew_is_heard_from_its_beginning(topics: Cluster, tmp_path: Path) -> None:
    """However far the old one was heard, and whether the new one has grown past that by now."""
    heard = list[str]()
    async with publishing(topics) as publisher:
        await publisher.publish([closed("a"), closed("b")])
    follower = Following(topics, ProviderClosed, noted(heard))
    await follower.start()
    with laboratory(topics, tmp_path) as lab:
        await lab.make_anew("providers.closed")
    async with publishing(topics) as publisher:
        await publisher.publish([closed(model) for model in "cdefg"])
    await eventually(lambda: set(heard) == set("abcdefg"), "all of the new topic is heard")
    await follower.stop()


async def test_a_follower_of_a_topic_that_is_not_made_yet_waits_for_it(cluster: Cluster) -> None:
    with pytest.raises(Later, match="no topic"):
        await Following(cluster, ProviderClosed, lambda _: None).start()


async def test_of_the_broadcast_the_newest_of_each_account_and_model_is_kept(topics: Cluster) -> None:
    assert len({closed("a").key(), closed("b").key(), closed("a", "openai 2").key()}) == 3
    admin = AIOKafkaAdminClient(bootstrap_servers=topics.bootstrap)
    await admin.start()
    name = topics.topic(ProviderClosed.topic)
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    await admin.close()
    (config,) = (resource[4] for resource in answer.resources)
    assert ("cleanup.policy", "compact") in {(entry[0], entry[1]) for entry in config}
