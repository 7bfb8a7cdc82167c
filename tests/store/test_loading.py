"""What a judge loads of a trace is bounded, and what is derived from its content still knows what was not loaded."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from spine import new_project
from steelyard.metrics.judging import Case
from steelyard.store import begun, loading, signals, traces
from steelyard.store.database import Database
from steelyard.traces import Trace

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


def span(n: int, **fields: Any) -> dict[str, Any]:
    return {"span_id": UUID(int=n + 1), "name": f"span {n}", "started_at": BEGAN + timedelta(seconds=n)} | fields


async def stored(database: Database, project: UUID, spans: list[dict[str, Any]], **fields: Any) -> UUID:
    trace = {"trace_id": uuid4(), "name": "agent", "started_at": BEGAN, "input": "hi", "output": "ho"} | fields
    async with database.begin() as tx:
        await traces.put(tx, project, trace, spans)
    return UUID(str(trace["trace_id"]))


async def cut(database: Database, trace_id: UUID) -> Trace:
    async with database.begin() as tx:
        loaded = await loading.load_cut(tx, trace_id)
    assert loaded is not None and loaded.trace is not None
    return loaded.trace


async def test_a_trace_that_fits_has_the_content_that_it_always_had(database: Database, project: UUID) -> None:
    """Answers and signals that earlier versions kept are found again."""
    spans = [span(n, input={"q": [n, "ä"]}, output=f"a{n}", metadata={"k": n}, error=None) for n in range(3)]
    ids = [await stored(database, project, s, metadata={"a": 1}, tags=["t"]) for s in ([], spans)]
    async with database.begin() as tx:
        whole, loaded = await traces.load(tx, ids), await loading.load(tx, ids)
    for trace_id in ids:
        trace = loaded[trace_id].trace
        assert trace is not None and Case(trace).content == Case(whole[trace_id]).content
    # And so has one that is cut in no place.
    assert Case(await cut(database, ids[1])).content == Case(whole[ids[1]]).content


async def test_a_trace_that_does_not_fit_sends_no_value_of_it(database: Database, project: UUID) -> None:
    trace_id = await stored(database, project, [span(0, input="x" * (loading.WHOLE + 1))])
    async with database.begin() as tx:
        loaded = (await loading.load(tx, [trace_id]))[trace_id]
    assert loaded.trace is None and loaded.size > loading.WHOLE


async def test_a_long_value_shows_its_head_what_is_missing_and_its_tail(database: Database, project: UUID) -> None:
    history = [{"role": "user", "content": f"message {n} " + "y" * 1000} for n in range(3000)]
    spans = [span(0, input="begins " + "x\n" * loading.WHOLE + " ends"), span(1, input=history, output="short")]
    trace = await cut(database, await stored(database, project, spans, metadata={"big": "z" * 3 * loading.WHOLE}))
    first, second = trace.spans
    assert first.input.startswith("begins x\nx\n") and first.input.endswith("x\n ends")
    assert "characters cut, sha256" in first.input
    assert isinstance(second.input, str) and "message 2999" in second.input and second.output == "short"
    assert set(trace.metadata) == {"cut"} and trace.input == "hi"
    assert len(repr(trace)) < 2 * loading.WHOLE


async def test_many_spans_keep_their_first_and_last_ones(database: Database, project: UUID) -> None:
    count = loading.MOST_SPANS + 500
    trace = await cut(database, await stored(database, project, [span(n) for n in range(count)]))
    half = loading.MOST_SPANS // 2
    assert [s.name for s in trace.spans[:half]] == [f"span {n}" for n in range(half)]
    assert [s.name for s in trace.spans[half + 1 :]] == [f"span {n}" for n in range(count - half, count)]
    assert trace.spans[half].name.startswith("500 spans are left out here")


@pytest.mark.parametrize("place", ["in a long value", "in a span that is left out"])
async def test_what_nobody_sees_still_makes_another_content(database: Database, project: UUID, place: str) -> None:
    """An old answer must not be taken for one about a trace that was changed in its middle."""

    def spans(word: str) -> list[dict[str, Any]]:
        if place == "in a long value":
            return [span(0, input="x" * loading.WHOLE + word + "x" * loading.WHOLE)]
        many = loading.MOST_SPANS + 9
        return [span(n, output=word if n == many // 2 else "") for n in range(many)]

    contents = []
    trace_id = uuid4()
    for word in ("one", "two", "one"):
        await stored(database, project, spans(word), trace_id=trace_id)
        contents.append(Case(await cut(database, trace_id)).content)
    assert contents[0] == contents[2] != contents[1]


async def test_what_loading_may_take_is_known_before_it(database: Database, project: UUID) -> None:
    """Compression hides most of it: what is reserved is the most that it can come to."""
    spans = [span(0, input="a" * 900_000), span(1, output="b" * 50_000)]
    trace_id, run_id = await stored(database, project, spans), uuid4()
    many = await stored(database, project, [span(n) for n in range(loading.MOST_SPANS + 1)])
    async with database.begin() as tx:
        await tx.execute(_RUN, {"id": run_id, "project": project})
        for owed in (trace_id, many):
            await tx.execute(_PAIR, {"run": run_id, "trace": owed, "project": project})
        prospects = await begun.look(tx, uuid4(), [(run_id, trace_id), (run_id, many)])
        loaded = (await loading.load(tx, [trace_id]))[trace_id]
    known = prospects[run_id, trace_id].stored
    assert known is not None and known < loaded.size <= loading.most(known) <= loading.WHOLE
    assert prospects[run_id, many].stored is None and loading.surely_large(None)


async def test_earlier_outputs_of_a_session_are_bounded_too(database: Database, project: UUID) -> None:
    ids = [await stored(database, project, [], output=o) for o in ("x" * 3_000_000, "short", "now")]
    run_id = uuid4()
    async with database.begin() as tx:
        await tx.execute(_RUN, {"id": run_id, "project": project})
        for n, trace_id in enumerate(ids):
            await tx.execute(_PLACED, {"run": run_id, "trace": trace_id, "project": project, "place": n})
        (before,) = (await signals.earlier(tx, [(run_id, ids[2])])).values()
    assert len(before[0].output) < 2 * signals.MOST_OF_EARLIER and "characters cut, sha256" in before[0].output
    assert before[1].output == "short"


_RUN = text(
    """
    INSERT INTO runs (id, project_id, status, metric_names, judge_model, filters, snapshot)
    VALUES (:id, :project, 'RUNNING', '{m}', 'heuristic/rules-v1', '{}', '')
    """
)
_PAIR = text(
    "INSERT INTO pairs (run_id, trace_id, metric, project_id, target) VALUES (:run, :trace, 'm', :project, 't')"
)
_PLACED = text(
    """
    INSERT INTO pairs (run_id, trace_id, metric, project_id, target, place)
    VALUES (:run, :trace, 'loop_detection', :project, 's', :place)
    """
)
