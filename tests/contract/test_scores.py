"""/evaluations/trace-scores: what people and programs say, and what judges said before them."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from contract_helpers import new_trace
from eventually import eventually
from steelyard.store import scores, traces
from steelyard.store.database import Database

SCORES = "/evaluations/trace-scores"


async def scored(client: httpx.AsyncClient, trace: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post(SCORES, json={"trace_id": trace, "name": "quality", "value": "0.9", **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def judged(database: Database, trace: str, value: str | None = "0.25") -> str:
    """A judge's score, as the aggregator writes it."""
    score = uuid4()
    given = {"id": score, "trace": UUID(trace), "value": value, "status": "SUCCESS" if value else "FAILED"}
    async with database.begin() as tx:
        await tx.execute(
            text(
                """
                INSERT INTO trace_scores (id, project_id, trace_id, name, value, status, reason, metadata, trace_version)
                SELECT :id, project_id, trace_id, 'coherence', :value, :status, 'says the judge', '{"model": "m"}', version
                FROM traces WHERE trace_id = :trace
                """
            ),
            given,
        )
    return str(score)


async def test_a_score_is_attached_and_listed_and_read(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client, environment="prod")
    score = await scored(client, trace, reason="checked", metadata={"by": "hand"})
    assert (score["value"], score["data_type"], score["source"], score["status"]) == (
        "0.9", "NUMERIC", "ANNOTATION", "SUCCESS",
    )  # fmt: skip
    assert (score["environment"], score["eval_run_id"], score["trace_version"]) == ("prod", None, 1)
    assert (await client.get(SCORES)).json() == {"items": [score], "total": 1, "limit": 50, "offset": 0}
    assert (await client.get(f"{SCORES}/{trace}")).json() == [score]


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("NUMERIC", "0.85", "0.85"), ("NUMERIC", "1", "1"), ("NUMERIC", "0.0", "0.0"), ("NUMERIC", 0.5, "0.5"),
        ("NUMERIC", "1e-3", "0.001"), ("NUMERIC", " .5 ", "0.5"), ("NUMERIC", "1e-400", "0.0"), ("NUMERIC", "-0", "0.0"),
        ("NUMERIC", 1, "1"), ("BOOLEAN", "true", "true"), ("BOOLEAN", "FALSE", "false"), ("BOOLEAN", True, "true"),
        ("CATEGORICAL", "PASS", "PASS"), ("CATEGORICAL", "a\x00b", "a\ufffdb"), ("CATEGORICAL", 3, "3"),
    ],
)  # fmt: skip
async def test_a_value_is_stored_by_its_kind(client: httpx.AsyncClient, kind: str, value: Any, stored: str) -> None:
    trace = await new_trace(client)
    assert (await scored(client, trace, value=value, data_type=kind))["value"] == stored
    assert (await client.get("/evaluations/analytics/trace-scores/summary")).json()[0]["success_count"] == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"value": "1.01"}, "value"), ({"value": "-0.1"}, "value"), ({"value": "nan"}, "value"), ({"value": "inf"}, "value"),
        ({"value": "0x1"}, "value"), ({"value": "1_0"}, "value"), ({"value": "١"}, "value"), ({"value": ""}, "value"),
        ({"value": True}, "value"), ({"value": "9" * 5000}, "value"), ({"value": None}, "value"), ({"value": "yes"}, "value"),
        ({"value": "1", "data_type": "BOOLEAN"}, "value"), ({"value": " ", "data_type": "CATEGORICAL"}, "value"),
        ({"value": "x" * 256, "data_type": "CATEGORICAL"}, "value"), ({"source": "AUTOMATED"}, "source"),
        ({"name": ""}, "name"), ({"name": "n" * 256}, "name"), ({"data_type": "TEXT"}, "data_type"),
        ({"trace_id": "1"}, "trace_id"), ({"metadata": [1]}, "metadata"),
    ],
)  # fmt: skip
async def test_a_value_that_cannot_be_is_a_422(client: httpx.AsyncClient, fields: dict[str, Any], field: str) -> None:
    trace = await new_trace(client)
    answer = await client.post(SCORES, json={"trace_id": trace, "name": "q", "value": "0.5", **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].split(".")[0] == field
    assert (await client.get(SCORES)).json()["total"] == 0


async def test_a_programs_score_before_its_trace_is_parked_and_attached(client: httpx.AsyncClient) -> None:
    trace = str(uuid4())
    early = await scored(client, trace, source="PROGRAMMATIC")
    assert (early["status"], early["environment"]) == ("PENDING", None)
    assert (await client.get(SCORES, params={"status": "PENDING"})).json()["total"] == 1
    assert (await client.get("/evaluations/analytics/trace-scores/summary")).json() == []
    await new_trace(client, trace_id=trace, environment="prod")
    (now,) = (await client.get(f"{SCORES}/{trace}")).json()
    assert (now["id"], now["status"], now["environment"], now["value"]) == (early["id"], "SUCCESS", "prod", "0.9")


async def test_a_persons_score_needs_its_trace(client: httpx.AsyncClient) -> None:
    answer = await client.post(SCORES, json={"trace_id": str(uuid4()), "name": "q", "value": "1"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Trace not found"})


async def test_scores_and_their_traces_sent_at_once_all_find_each_other(client: httpx.AsyncClient) -> None:
    """The two are racing: a score finds its trace, or is parked and found by it. None slips between."""
    ids = [str(uuid4()) for _ in range(60)]

    async def both(trace: str) -> None:
        sent = new_trace(client, trace_id=trace, environment="e")
        await asyncio.gather(scored(client, trace, source="PROGRAMMATIC"), sent)

    await asyncio.gather(*(both(i) for i in ids))
    page = (await client.get(SCORES, params={"status": "SUCCESS", "environment": "e", "limit": 200})).json()
    assert page["total"] == 60 and {s["trace_id"] for s in page["items"]} == set(ids)


async def test_parked_scores_without_a_trace_are_pruned(client: httpx.AsyncClient, database: Database) -> None:
    await scored(client, str(uuid4()), source="PROGRAMMATIC")
    kept = await scored(client, await new_trace(client))
    async with database.begin() as tx:
        assert await scores.prune_parked(tx, hours=24, page=10) == 0
        await tx.execute(text("UPDATE trace_scores SET created_at = now() - interval '25 hours'"))
        assert await scores.prune_parked(tx, hours=24, page=10) == 1
    assert [s["id"] for s in (await client.get(SCORES)).json()["items"]] == [kept["id"]]


async def test_every_filter_of_the_list_is_exact(client: httpx.AsyncClient) -> None:
    first, second = await new_trace(client, environment="prod"), await new_trace(client, environment="dev")
    a = await scored(client, first, name="a")
    b = await scored(client, second, name="b", value="true", data_type="BOOLEAN", source="PROGRAMMATIC")

    async def found(**query: Any) -> list[str]:
        answer = await client.get(SCORES, params=query)
        assert answer.status_code == 200, answer.text
        assert answer.json()["total"] == len(answer.json()["items"])
        return [s["id"] for s in answer.json()["items"]]

    assert await found() == [b["id"], a["id"]]
    assert await found(trace_id=first) == [a["id"]]
    assert await found(name="b") == [b["id"]] and await found(name="B") == []
    assert await found(source="PROGRAMMATIC") == [b["id"]]
    assert await found(status="FAILED") == []
    assert await found(data_type="NUMERIC") == [a["id"]]
    assert await found(environment="prod") == [a["id"]]
    assert await found(eval_run_id=str(uuid4())) == []
    assert await found(date_from=b["created_at"]) == [b["id"]]
    assert await found(date_to=b["created_at"]) == [a["id"]]


async def test_the_latest_of_each_name_counts(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client)
    await scored(client, trace, name="a", value="0.1")
    other = await scored(client, trace, name="b", value="0.3")
    last = await scored(client, trace, name="a", value="0.2")
    assert (await client.get(f"{SCORES}/{trace}")).json() == [last, other]
    assert (await client.get(f"{SCORES}/{uuid4()}")).status_code == 404


async def test_a_persons_word_keeps_what_the_judge_said(client: httpx.AsyncClient, database: Database) -> None:
    score = await judged(database, await new_trace(client))
    answer = await client.patch(f"{SCORES}/{score}", json={"value": "0.95", "reason": "it was right"})
    assert answer.status_code == 200, answer.text
    now = answer.json()
    assert (now["value"], now["reason"], now["source"], now["metadata"]) == (
        "0.95", "it was right", "ANNOTATION", {"model": "m"},
    )  # fmt: skip
    await client.patch(f"{SCORES}/{score}", json={"metadata": {"n": 1}, "reason": None})
    later, first = (await client.get(f"{SCORES}/{score}/history")).json()
    assert (first["value"], first["reason"], first["source"], first["metadata"]) == (
        "0.25", "says the judge", "AUTOMATED", {"model": "m"},
    )  # fmt: skip
    assert (later["value"], later["source"]) == ("0.95", "ANNOTATION")
    (shown,) = (await client.get(SCORES)).json()["items"]
    assert (shown["metadata"], shown["reason"], shown["value"]) == ({"n": 1}, None, "0.95")


async def test_a_score_that_failed_needs_a_value_to_be_changed(client: httpx.AsyncClient, database: Database) -> None:
    score = await judged(database, await new_trace(client), value=None)
    refused = await client.patch(f"{SCORES}/{score}", json={"reason": "hm"})
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "value"
    assert (await client.get(f"{SCORES}/{score}/history")).json() == []
    assert (await client.patch(f"{SCORES}/{score}", json={"value": "1"})).json()["status"] == "SUCCESS"


@pytest.mark.parametrize("patch", [{}, {"value": "2"}, {"value": "true"}, {"value": None}, {"metadata": "x"}, []])
async def test_a_patch_that_cannot_be_changes_nothing(client: httpx.AsyncClient, patch: Any) -> None:
    score = await scored(client, await new_trace(client))
    assert (await client.patch(f"{SCORES}/{score['id']}", json=patch)).status_code == 422
    assert (await client.get(SCORES)).json()["items"] == [score]


async def test_a_parked_score_that_is_changed_still_waits_for_its_trace(client: httpx.AsyncClient) -> None:
    trace = str(uuid4())
    score = await scored(client, trace, source="PROGRAMMATIC")
    assert (await client.patch(f"{SCORES}/{score['id']}", json={"value": "0.1"})).json()["status"] == "PENDING"
    await new_trace(client, trace_id=trace)
    assert (await client.get(f"{SCORES}/{trace}")).json()[0]["value"] == "0.1"


async def test_a_deleted_score_is_gone(client: httpx.AsyncClient) -> None:
    score = await scored(client, await new_trace(client))
    await client.patch(f"{SCORES}/{score['id']}", json={"value": "0.1"})
    assert (await client.delete(f"{SCORES}/{score['id']}")).status_code == 204
    for verb, path in (("DELETE", ""), ("PATCH", ""), ("GET", "/history")):
        body = {"value": "1"} if verb == "PATCH" else None
        answer = await client.request(verb, f"{SCORES}/{score['id']}{path}", json=body)
        assert (answer.status_code, answer.json()["detail"]) == (404, "Score not found")


async def blocked_or(done: "asyncio.Task[Any]", database: Database) -> None:
    """Until the task has ended or waits for somebody's advisory lock."""
    waiting = text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = :db")
    oid = text("SELECT oid FROM pg_database WHERE datname = current_database()")

    async def fact() -> bool:
        async with database.begin() as tx:
            db = (await tx.execute(oid)).scalar()
            return done.done() or (await tx.execute(waiting, {"db": db})).first() is not None

    await eventually(fact, "the other one has ended or waits")


async def test_a_trace_waits_for_a_score_that_is_being_parked(
    client: httpx.AsyncClient, api_database: Database, database: Database
) -> None:
    project, trace = (await client.get(f"/traces/{await new_trace(client)}")).json()["project_id"], uuid4()
    score = {"id": uuid4(), "trace_id": trace, "name": "q", "value": "1", "data_type": "NUMERIC", "reason": None}
    score |= {"source": "PROGRAMMATIC", "metadata": {}, "author_user_id": None}
    async with api_database.begin(UUID(project)) as tx:
        parked = await scores.put(tx, UUID(project), score, park=True)
        sending = asyncio.create_task(new_trace(client, trace_id=str(trace)))
        await blocked_or(sending, database)
    await sending
    assert parked is not None and parked["status"] == "PENDING"
    assert (await client.get(f"{SCORES}/{trace}")).json()[0]["status"] == "SUCCESS"


async def test_a_score_waits_for_a_trace_that_is_being_written(
    client: httpx.AsyncClient, api_database: Database, database: Database
) -> None:
    project, trace = (await client.get(f"/traces/{await new_trace(client)}")).json()["project_id"], uuid4()
    fields = {"trace_id": trace, "name": "t", "started_at": "2026-03-01T10:00:00+00:00"}
    async with api_database.begin(UUID(project)) as tx:
        await traces.put(tx, UUID(project), fields, [])
        sending = asyncio.create_task(scored(client, str(trace), source="PROGRAMMATIC"))
        await blocked_or(sending, database)
    assert (await sending)["status"] == "SUCCESS"
