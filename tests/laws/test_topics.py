"""Topics are made on purpose: by the command, and by a service that misses one."""

from pathlib import Path

from eventually import eventually
from laboratory import laboratory
from steelyard.incarnations import incarnations
from steelyard.kafka import Cluster, Readers, all_topics, in_sync, make_topics, weakly_kept
from steelyard.topics import Topics


def test_one_broker_may_die_and_what_was_acknowledged_is_there_and_the_rest_goes_on() -> None:
    """Two of three have each message; with two copies one of them is enough, else the death of either stops everybody."""
    assert {copies: in_sync(copies) for copies in (1, 2, 3, 5)} == {1: 1, 2: 1, 3: 2, 5: 2}


async def test_topics_that_were_made_by_us_are_kept_as_well_as_they_can_be(topics: Cluster) -> None:
    assert await make_topics(topics) == []
    assert await weakly_kept(topics) == {}


async def test_topics_that_disappear_while_a_process_lives_are_made_again_and_it_is_told(
    topics: Cluster, tmp_path: Path
) -> None:
    told = list[int]()

    async def anew() -> None:
        told.append(1)

    keeper, readers = Topics(topics, anew), Readers(topics)
    await keeper.start()
    await readers.start()
    try:
        before = await incarnations(readers._admin._client, list(all_topics(topics)))
        with laboratory(topics, tmp_path) as lab:
            await lab.delete("jobs.trace", "scores.trace.dead")
        await eventually(lambda: told, "whoever publishes is told that the topics are others")
        after = await incarnations(readers._admin._client, list(all_topics(topics)))
    finally:
        await readers.stop()
        await keeper.stop()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {topics.topic("jobs.trace"), topics.topic("scores.trace.dead")}
