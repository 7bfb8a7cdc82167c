"""The README's picture is what the handlers' signatures say."""

from steelyard.events import KINDS
from steelyard_local.map import README, drawn, services


def test_the_picture_in_the_readme_is_the_one_that_the_handlers_draw() -> None:
    assert drawn() in README.read_text(), "run `make map`"


def test_every_event_has_somebody_who_makes_it() -> None:
    flows = [f for s in services() for f in s.flows]
    made = {kind.__name__ for f in flows for kind in (*f.gives, *f.outbox)}
    assert made == set(KINDS)


def test_a_topic_is_read_by_one_service() -> None:
    """Two groups on one topic would do the work twice; who wants to listen as well takes what comes out of it. What each
    process follows is no work."""
    readers = {(kind.topic, f.service) for s in services() for f in s.flows for kind in f.takes if not f.each}
    assert len(readers) == len({topic for topic, _ in readers})
