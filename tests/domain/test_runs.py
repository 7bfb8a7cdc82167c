"""What a run means, as plain functions of values."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from steelyard.events import TraceDeferred, TraceScored
from steelyard.runs import PairState, distinct, key_of, sample, sample_size, settle, shares, window

RUN, TRACE = UUID(int=1), UUID(int=2)
SOON = datetime(2026, 1, 1, tzinfo=UTC)


def scored(value: float | None = 0.5) -> TraceScored:
    ids = {"run_id": RUN, "project_id": RUN, "trace_id": TRACE}
    return TraceScored(**ids, target="t", metric="m", value=value, reason="r")


def deferred(dispatch_no: int = 1, counts: bool = True, minutes: int = 0) -> TraceDeferred:
    ids = {"run_id": RUN, "project_id": RUN, "trace_id": TRACE}
    until = SOON + timedelta(minutes=minutes)
    return TraceDeferred(**ids, target="t", metric="m", dispatch_no=dispatch_no, until=until, reason="r", counts=counts)


def pair(**fields: Any) -> PairState:
    values: dict[str, Any] = {"status": "dispatched", "dispatch_no": 1, "attempts": 0} | fields
    return PairState(RUN, TRACE, "m", RUN, "t", **values)


def test_a_sample_has_the_floor_and_at_least_one() -> None:
    assert [sample_size(n, r) for n, r in ((10, 0.5), (10, 0.19), (10, 0.01), (0, 1.0), (3, 0.0), (100, 0.29))] == [
        5, 1, 1, 0, 0, 29,
    ]  # fmt: skip


@given(st.sets(st.uuids().map(str), max_size=50), st.integers(0, 60))
def test_a_sample_does_not_depend_on_the_order_of_its_targets(targets: set[str], size: int) -> None:
    taken = sample(RUN, sorted(targets), size)
    assert taken == sample(RUN, sorted(targets, reverse=True), size)
    assert len(taken) == min(size, len(targets))


def test_a_score_beats_a_deferral_and_the_first_score_later_ones() -> None:
    first = scored(0.1)
    assert distinct([deferred(), first, deferred(), scored(0.9)]) == {key_of(first): first}


def test_a_stale_deferral_changes_nothing_and_a_late_score_counts() -> None:
    key = (RUN, TRACE, "m")
    assert settle([pair(dispatch_no=2)], {key: deferred(1)}, 5, SOON) == ([], [])
    assert settle([pair(status="owed")], {key: deferred(1)}, 5, SOON) == ([], [])
    settled, _ = settle([pair(dispatch_no=7, status="owed")], {key: scored(0.5)}, 5, SOON)
    assert [s.value for s in settled] == [0.5]


def test_attempts_that_were_not_the_pairs_own_do_not_count() -> None:
    key = (RUN, TRACE, "m")
    _, postponed = settle([pair(attempts=4)], {key: deferred(counts=False)}, 5, SOON)
    assert [p.attempts for p in postponed] == [4]
    settled, postponed = settle([pair(attempts=4)], {key: deferred()}, 5, SOON)
    assert [s.outcome for s in settled] == ["FAILED"] and postponed == []


def test_a_deferral_lasts_as_long_as_it_says_whatever_the_clocks_and_an_hour_at_most() -> None:
    key, years = (RUN, TRACE, "m"), timedelta(days=2000)
    for says, lasts in ((7.0, 7.0), (-1.0, 0.0), (90_000.0, 3600.0)):
        for now in (SOON - years, SOON, SOON + years):
            late = deferred().model_copy(update={"after": says})
            assert [p.seconds for p in settle([pair()], {key: late}, 5, now)[1]] == [lasts]
    _, (of_the_release_before,) = settle([pair()], {key: deferred(minutes=2)}, 5, SOON)
    assert of_the_release_before.seconds == 120


@given(st.integers(1, 2000), st.dictionaries(st.uuids(), st.integers(0, 5000), min_size=1, max_size=20))
def test_shares_are_fair(total: int, demands: dict[UUID, int]) -> None:
    given = shares(total, demands)
    assert all(given[run] <= demands[run] for run in demands)
    assert sum(given.values()) <= total + len(demands)
    most = max(given.values())
    for run, wanted in demands.items():
        # Whoever got less than he asked for got as much as anybody else, give or take the remainder of a division.
        assert given[run] == wanted or given[run] >= most - 1 or given[run] >= total // len(demands)


def test_a_small_run_gets_all_it_asks_for_beside_a_large_one() -> None:
    large, small = uuid4(), uuid4()
    assert shares(80, {large: 2000, small: 10}) == {large: 70, small: 10}


def test_the_window_is_bounded() -> None:
    assert window(64, 0, 0.3) == 80
    assert window(64, 200, 0.3) == 124
    assert window(64, 10_000, 0.3) == 256
