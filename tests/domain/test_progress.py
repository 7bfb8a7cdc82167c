"""What one partition's bookkeeping promises, on any order of finishing and any gaps in the log."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from steelyard.progress import Progress, incarnation_of, remembered

LOGS = st.lists(st.integers(min_value=1, max_value=6), min_size=1, max_size=80)


def offsets(gaps: list[int], start: int) -> list[int]:
    """A log with holes, as compaction and transaction markers leave them."""
    at, found = start, []
    for gap in gaps:
        found.append(at)
        at += gap
    return found


@given(LOGS, st.integers(0, 5000), st.data())
def test_the_next_owner_skips_what_was_finished_and_repeats_what_was_not(
    gaps: list[int], start: int, data: st.DataObject
) -> None:
    log = offsets(gaps, start)
    done = data.draw(st.lists(st.sampled_from(log), unique=True))
    first = Progress()
    assert all(first.take(o) for o in log)
    for offset in done:
        first.finish(offset)

    low = first.watermark
    assert low is not None
    assert all(o in done for o in log if o < low), "an unfinished offset is below the watermark"
    second = Progress(remembered(low, first.note()))
    assert [o for o in log if o >= low and second.take(o)] == [o for o in log if o not in done]


def test_a_record_that_is_delivered_again_after_a_rebalance_is_not_taken_twice() -> None:
    progress = Progress()
    assert progress.take(7) and progress.take(8)
    assert not progress.take(7)
    assert progress.span == 2


def test_a_note_that_cannot_be_read_repeats_work_and_loses_none() -> None:
    assert (
        remembered(5, None) == remembered(5, "") == remembered(5, "somebody else's") == remembered(5, "1:%%") == set()
    )


def test_a_note_about_two_thousand_jobs_fits_into_a_commit() -> None:
    progress = Progress()
    for offset in range(2000):
        progress.take(offset)
    for offset in range(1, 2000, 2):
        progress.finish(offset)
    assert len(progress.note()) < 1000
    assert remembered(0, progress.note()) == set(range(1, 2000, 2))


def test_a_note_says_of_which_incarnation_it_speaks() -> None:
    """An offset of a log that is gone means nothing in the one that has its name."""
    progress, incarnation = Progress(), uuid4()
    for offset in range(3):
        progress.take(offset)
    progress.finish(2)
    note = progress.note(incarnation)
    assert incarnation_of(note) == incarnation and remembered(0, note) == {2}
    assert incarnation_of(progress.note()) is None and remembered(0, progress.note()) == {2}


def test_a_note_of_an_earlier_version_is_read_after_an_upgrade() -> None:
    assert remembered(4, "1:BQ==") == {4, 6} and incarnation_of("1:BQ==") is None
    assert incarnation_of(None) is incarnation_of("") is incarnation_of("2:nonsense:BQ==") is None


def test_the_next_owner_goes_on_where_the_last_commit_was_before_anything_is_delivered() -> None:
    progress = Progress({12}, position=10)
    assert (progress.watermark, progress.span) == (10, 0)
    assert progress.take(10) and progress.take(11) and not progress.take(12)
    assert (progress.position, progress.watermark) == (13, 10)
