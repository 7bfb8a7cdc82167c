"""The laws of the window consumer on a real broker: nothing is lost, and repeated only what nobody could know."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventually import eventually
from laboratory import Laboratory, job, laboratory
from steelyard.kafka import Cluster


@pytest.fixture
def lab(topics: Cluster, tmp_path: Path) -> Iterator[Laboratory]:
    with laboratory(topics, tmp_path) as lab:
        yield lab


async def test_a_killed_worker_loses_nothing_and_repeats_only_what_was_not_committed(lab: Laboratory) -> None:
    chance = random.Random(1)
    jobs = [job(f"j{n}", round(chance.uniform(1, 3), 2)) for n in range(1200)]
    places = await lab.send(jobs)
    first = lab.start(slots=200)
    await eventually(lambda: sum(lab.ended().values()) >= 400, "400 jobs are done")
    first.kill()
    first.wait()
    in_flight = len(lab.began()) - len(lab.ended())
    covered = await lab.covered(places)
    began_before = lab.began()

    lab.start(slots=200)
    await eventually(lambda: len(lab.ended()) == 1200, "every job is done")

    repeated = {t for t, n in lab.began().items() if n > 1}
    assert in_flight >= 100, f"only {in_flight} jobs were in flight: this law needs a crowd"
    assert set(await lab.outcomes()) == {j.target for j in jobs}
    assert repeated.isdisjoint(covered), "a finished and committed job was called again"
    assert repeated <= set(began_before), "a job that had not begun was called twice"
    assert len(covered) >= 300, f"only {len(covered)} of 400 finished jobs were committed before the kill"
    assert max(lab.began().values()) <= 2


async def test_a_stopped_worker_finishes_what_it_began_and_nothing_is_repeated(lab: Laboratory) -> None:
    jobs = [job(f"j{n}", 0.5) for n in range(600)]
    await lab.send(jobs)
    first = lab.start(slots=100)
    await eventually(lambda: len(lab.ended()) >= 150, "150 jobs are done")
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    assert len(lab.ended()) < 600, "the worker was not stopped in the middle"
    assert lab.began() == lab.ended(), "a stopped worker left a job unfinished"

    lab.start(slots=100)
    await eventually(lambda: len(lab.ended()) == 600, "every job is done")
    assert set((await lab.outcomes()).values()) == {1}
    assert set(lab.began().values()) == {1}


async def test_jobs_longer_than_the_drain_are_handed_back(lab: Laboratory) -> None:
    await lab.send([job(f"short{n}", 0.1) for n in range(20)] + [job("long", 8)])
    first = lab.start(DRAIN_SECONDS="0.5")
    await eventually(lambda: len(lab.ended()) == 20 and "long" in lab.began(), "only the long job is in flight")
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    lab.start()
    await eventually(lambda: "long" in lab.ended(), "the long job is done by the next worker")
    assert set(await lab.outcomes()) == {f"short{n}" for n in range(20)} | {"long"}
    assert {t for t, n in lab.began().items() if n > 1} == {"long"}


async def test_a_second_worker_joins_and_leaves_and_nothing_is_lost(lab: Laboratory) -> None:
    chance = random.Random(2)
    jobs = [job(f"j{n}", round(chance.uniform(0.5, 1.5), 2)) for n in range(1200)]
    await lab.send(jobs)
    first = lab.start(slots=60, REBALANCE_DRAIN_SECONDS="5")
    await eventually(lambda: len(lab.ended()) >= 100, "the first one works")
    second = lab.start(slots=60, REBALANCE_DRAIN_SECONDS="5")
    await eventually(lambda: _by(lab, second.pid) >= 100, "the second one works too")
    second.send_signal(signal.SIGTERM)
    assert second.wait(40) == 0
    await eventually(lambda: len(lab.ended()) == 1200, "every job is done")
    assert first.poll() is None
    assert set(await lab.outcomes()) == {j.target for j in jobs}
    # Jobs are shorter than the drains of a rebalance and of a stop: nobody's call is made twice.
    assert {t: n for t, n in lab.began().items() if n > 1} == {}


async def test_a_poison_message_is_a_dead_letter_and_the_rest_goes_on(lab: Laboratory) -> None:
    good = [job(f"j{n}", 0.01) for n in range(40)]
    await lab.send(good[:20])
    await lab.send([job("poisoned", "poison")])
    await lab.send(good[20:])
    lab.start()
    await eventually(lambda: len(lab.ended()) == 40, "the good ones are done")

    async def letters() -> list[object]:
        return await lab.everything("jobs.trace.dead")

    (letter,) = await eventually(letters, "a dead letter")
    headers = dict(letter.headers)
    assert letter.value == job("poisoned", "poison").encode()
    assert headers["x-reason"].startswith(b"ValueError at ")
    assert headers["x-origin"].startswith(f"{lab.cluster.prefix}jobs.trace/".encode())


async def test_when_most_messages_fail_the_service_stops_and_says_so(lab: Laboratory) -> None:
    await lab.send([job(f"poisoned{n}", "poison") for n in range(200)])
    worker = lab.start()
    assert worker.wait(60) == 1
    assert "most messages fail" in lab.said()
    assert len(await lab.everything("jobs.trace.dead")) < 50, "everything was moved to the dead letters"


def _by(lab: Laboratory, pid: int) -> int:
    return sum(1 for verb, _, who in lab._notes() if verb == "ended" and who == str(pid))
