"""What a judge tells about a provider that closed, what it makes of what others tell, and how often."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from eventually import eventually
from steelyard.errors import Later
from steelyard.events import ProviderClosed
from steelyard.settings import Settings
from steelyard_judge.gates import Exhausted, Gates, Shut
from steelyard_judge.model import Gateway
from steelyard_resolver.closings import Closings

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
A = "openai 1"


def gates() -> Gates:
    return Gates(900, lambda: NOW)


async def met(gates: Gates, model: str = "m", seconds: float = 30, account: str = A) -> None:
    """A call that is answered with a 429."""
    with pytest.raises(Shut):
        async with gates.passed(account, model) as gate:
            gate.close(f"{model} is rate limited", seconds)
            raise Shut(gate.why, after=seconds, counts=False)


async def ran_out(gates: Gates, model: str = "m") -> None:
    with pytest.raises(Exhausted):
        async with gates.passed(A, model) as gate:
            gate.exhaust(f"the quota of {model} is exhausted", gates.quota_seconds)
            raise Exhausted(gate.why_exhausted)


async def passes(gates: Gates, model: str = "m") -> None:
    async with gates.passed(A, model):
        pass


def said(gates: Gates) -> list[ProviderClosed]:
    untold = gates.untold()
    gates.told(untold)
    return untold


def closed(until: float, exhausted: bool = False, model: str = "m", at: float = 0) -> ProviderClosed:
    when, end = NOW + timedelta(seconds=at), NOW + timedelta(seconds=until)
    return ProviderClosed(account=A, model=model, at=when, until=end, why="said elsewhere", exhausted=exhausted)


async def test_of_a_storm_of_429s_one_is_told() -> None:
    some = gates()
    for _ in range(3):
        async with some.passed(A, "m") as gate:
            # Under way together, and each is limited: the gate was open when they were sent.
            gate.close("m is rate limited", 30)
        with pytest.raises(Shut):
            await passes(some)
        gate.until = 0
    (event,) = said(some)
    assert (event.account, event.model, event.why, event.exhausted) == (A, "m", "m is rate limited", False)
    assert 29 < (event.until - NOW).total_seconds() <= 30 and not event.opens
    gate.close("m is rate limited", 40)
    with pytest.raises(Shut):
        await passes(some)
    assert len(said(some)) == 1, "a later time is news"


async def test_a_model_that_finds_its_accounts_gate_shut_is_told_of_too_and_another_account_is_not_concerned() -> None:
    some = gates()
    await met(some)
    with pytest.raises(Shut):
        await passes(some, "another")
    assert {e.model for e in said(some)} == {"m", "another"}
    async with some.passed("openai 2", "m"):
        pass


async def test_what_is_heard_closes_the_gate_and_a_shorter_word_does_not_open_it() -> None:
    some = gates()
    some.hear(closed(60))
    some.hear(closed(5))
    with pytest.raises(Later, match="said elsewhere") as late:
        await passes(some)
    assert late.value.after is not None and late.value.after > 55 and not late.value.counts
    (event,) = said(some)
    assert event.until > NOW + timedelta(seconds=55), "who heard the shorter word alone is corrected"


@pytest.mark.parametrize("skew", [-7200, -120, 0, 3600])
async def test_a_sender_whose_clock_is_wrong_closes_for_as_long_as_it_says(skew: int) -> None:
    some, before = gates(), time.monotonic()
    some.hear(closed(60 + skew, at=skew))
    assert before + 60 <= some.of(A).until <= time.monotonic() + 60


async def test_nothing_closes_for_longer_than_an_hour_and_what_is_over_when_it_is_heard_does_not_close() -> None:
    some = gates()
    some.hear(closed(90_000))
    assert some.of(A).until <= time.monotonic() + 3600
    others = gates()
    over = closed(55).aged(56)
    assert not over.opens, "over is no word that the quota is there again"
    others.hear(over)
    await eventually(lambda: others.of(A).until < time.monotonic(), "it is open")
    await passes(others)


def test_the_dispatcher_keeps_to_a_closing_from_when_it_hears_it() -> None:
    now = 1000.0
    closings = Closings(lambda: now)
    closings.hear(closed(3660, at=3600))
    assert closings.closed("m") and closings.limited("m")
    now += 59
    assert closings.closed("m")
    now += 2
    assert not closings.closed("m")


async def test_an_exhausted_quota_is_told_once_and_its_pairs_come_back_soon() -> None:
    some = gates()
    await ran_out(some)
    (event,) = said(some)
    assert event.exhausted and event.until - NOW > timedelta(seconds=899)
    with pytest.raises(Exhausted) as late:
        await passes(some)
    assert late.value.after is not None and late.value.after < 5 and not late.value.counts and said(some) == []


async def test_only_a_probe_opens_and_it_opens_every_model_of_the_account() -> None:
    some = gates()
    await ran_out(some)
    some.hear(closed(900, exhausted=True, model="heard of"))
    said(some)
    some.answered(A, "m")
    with pytest.raises(Exhausted):
        await passes(some)
    assert said(some) == [], "an answer to a call that was sent before proves nothing"
    some.probe(A)
    await passes(some)
    some.answered(A, "m")
    opened = said(some)
    assert {e.model for e in opened} == {"m", "heard of"} and all(e.opens for e in opened)
    others = gates()
    others.hear(closed(900, exhausted=True))
    others.hear(opened[-1])
    await passes(others)


async def test_a_probe_that_fails_is_news_however_soon_it_was() -> None:
    some = gates()
    await ran_out(some)
    said(some)
    some.probe(A)
    await ran_out(some)
    assert [e.exhausted for e in said(some)] == [True]


async def test_a_limit_that_a_probe_meets_is_told_although_the_quota_was_to_last_longer() -> None:
    some = gates()
    await ran_out(some)
    said(some)
    some.probe(A)
    await met(some, seconds=7)
    assert [(e.exhausted, e.until < NOW + timedelta(seconds=8)) for e in said(some)] == [(False, True)]
    some.of(A).until = 0
    await passes(some)
    some.answered(A, "m")
    assert [e.opens for e in said(some)] == [True], "the answer that comes later opens all the same"


async def test_what_was_not_acknowledged_is_told_again() -> None:
    some = gates()
    await met(some)
    assert some.bell.is_set() and some.untold() == some.untold() != []


def test_an_account_is_known_by_its_key_and_does_not_tell_it() -> None:
    def account(key: str, secret: str = "s" * 16) -> str:
        return Gateway(Settings(deployment_secret=secret), {"OPENAI_API_KEY": key})._account("gpt-5")

    assert account("a") == account("a") != account("b") and account("a").startswith("openai ")
    assert account("a") != account("a", "t" * 16), "a short key could be guessed from what travels"
