"""The map of the events: what is written can be read, by this version and by the next."""

from uuid import UUID, uuid4

import orjson
import pytest

from steelyard.errors import Later, Never
from steelyard.events import KINDS, LARGEST, Event, Oversize, RunRequested, TraceScored, decode, topics

RUN = RunRequested(run_id=UUID(int=1), project_id=UUID(int=2))


def test_an_event_says_its_name_and_version() -> None:
    said = orjson.loads(RUN.encode())
    assert (said["event"], said["version"]) == ("RunRequested", 1)
    assert decode(RUN.encode()) == RUN
    assert RUN.key() == str(RUN.run_id).encode()


def test_fields_that_a_reader_does_not_know_are_ignored() -> None:
    assert decode(orjson.dumps({**orjson.loads(RUN.encode()), "priority": "high"})) == RUN


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"3",
        b'"text"',
        b"{}",
        b'{"event":"RunRequested","version":1}',
        b'{"event":[],"version":1}',
        b'{"event":"RunRequested","version":"1"}',
    ],
)
def test_what_is_no_event_is_never_read(value: bytes | None) -> None:
    with pytest.raises(Never):
        decode(value)


@pytest.mark.parametrize("newer", [{"version": 2}, {"event": "RunCancelled"}])
def test_what_a_newer_service_sent_waits_for_the_upgrade(newer: dict[str, object]) -> None:
    with pytest.raises(Later):
        decode(orjson.dumps({**orjson.loads(RUN.encode()), **newer}))


def test_a_class_without_a_topic_fails_at_import() -> None:
    with pytest.raises(TypeError):
        type("Homeless", (Event,), {})


def test_events_of_one_topic_agree_about_its_partitions() -> None:
    with pytest.raises(TypeError, match="partitions"):

        class Odd(Event, topic="runs.requested", keyed_by="run_id", partitions=1):
            run_id: UUID

    assert "Odd" not in KINDS
    assert topics()["runs.requested"] == 6


def test_an_event_that_is_too_large_is_refused_before_the_broker_is_asked() -> None:
    ids = {name: uuid4() for name in ("run_id", "project_id", "trace_id")}
    large = TraceScored(**ids, target="t", metric="m", value=1.0, reason="x" * LARGEST)
    with pytest.raises(Oversize):
        large.encode()
