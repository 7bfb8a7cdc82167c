"""When the places that a checkpoint notes can be waited for, and when nobody will ever reach them."""

from datetime import UTC, datetime
from uuid import uuid4

from steelyard_resolver.overdue import Checkpoint

THIS, ANOTHER = uuid4(), uuid4()
CHECKPOINT = Checkpoint(datetime(2026, 1, 1, tzinfo=UTC), {0: 7}, {0: 40, 1: 0}, THIS)


def test_a_checkpoint_holds_while_its_topics_are_there_and_grow() -> None:
    assert not CHECKPOINT.void(THIS, {0: 40, 1: 0})
    assert not CHECKPOINT.void(THIS, {0: 99, 1: 3})


def test_a_checkpoint_of_topics_that_were_made_anew_is_void_however_far_those_have_grown() -> None:
    assert CHECKPOINT.void(ANOTHER, {0: 99, 1: 3})


def test_a_checkpoint_beyond_the_end_of_a_log_that_shrank_is_void() -> None:
    assert CHECKPOINT.void(THIS, {0: 39, 1: 3})
    assert CHECKPOINT.void(THIS, {1: 3})
