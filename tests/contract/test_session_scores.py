"""/evaluations/session-scores: listed, read by any session id, deleted, alone and with their session."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from contract_sessions import RUNS, SCORES, STRANGE, a_score, new_session, put, spelled
from steelyard.store.database import Database


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await client.get(SCORES, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == len(answer.json()["items"]) or "limit" in query
    return [s["id"] for s in answer.json()["items"]]


async def test_a_score_says_all_that_was_written(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s")
    run = (await client.post(RUNS, json={"metrics": ["agent_reliability"]})).json()["id"]
    metadata = {"worst_trace": "t", "signal_weights": {"confidence": 1.0}, "success": True}
    score = a_score(project, "s", 0.25, eval_run_id=UUID(run), metadata=metadata)
    await put(database, score, day=1)
    expected = {
        "id": str(score["id"]), "session_id": "s", "project_id": str(project), "name": "agent_reliability",
        "data_type": "NUMERIC", "value": "0.25", "source": "AUTOMATED", "status": "SUCCESS", "eval_run_id": run,
        "author_user_id": None, "reason": "because", "metadata": metadata, "created_at": "2026-03-02T00:00:00Z",
        "updated_at": "2026-03-02T00:00:00Z", "session_version": "v1", "traces_seen": 2,
        "snapshot_at": "2026-03-01T00:00:00Z",
    }  # fmt: skip
    page = (await client.get(SCORES)).json()
    assert page == {"items": [expected], "total": 1, "limit": 50, "offset": 0}
    assert (await client.get(f"{SCORES}/s")).json() == [expected]
    assert (await client.get(f"{RUNS}/{run}/scores")).json() == [expected]


async def test_scores_are_filtered_and_the_newest_come_first(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "a")
    await new_session(client, "b")
    run = UUID((await client.post(RUNS, json={"metrics": ["agent_reliability"]})).json()["id"])
    (old,) = map(str, await put(database, a_score(project, "a"), day=0))
    (mid,) = map(str, await put(database, a_score(project, "b", name="agent_consistency", eval_run_id=run), day=1))
    (new,) = map(str, await put(database, a_score(project, "a", None), day=2))
    for query, expected in (
        ({}, [new, mid, old]), ({"session_id": "a"}, [new, old]), ({"name": "agent_consistency"}, [mid]),
        ({"status": "FAILED"}, [new]), ({"status": "PENDING"}, []), ({"source": "AUTOMATED"}, [new, mid, old]),
        ({"source": "ANNOTATION"}, []), ({"eval_run_id": str(run)}, [mid]), ({"eval_run_id": str(uuid4())}, []),
        ({"date_from": "2026-03-02T00:00:00Z"}, [new, mid]), ({"date_to": "2026-03-02T00:00:00Z"}, [old]),
        ({"limit": 1, "offset": 1}, [mid]), ({"session_id": "a", "status": "SUCCESS", "limit": 5}, [old]),
    ):  # fmt: skip
        assert await listed(client, **query) == expected, query


async def test_pages_of_scores_of_one_moment_never_overlap(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s")
    ids = [str(i) for i in await put(database, *(a_score(project, f"s{n}") for n in range(25)))]
    pages = [await listed(client, limit=10, offset=n) for n in (0, 10, 20)]
    assert [i for page in pages for i in page] == sorted(ids) and len(pages[2]) == 5


@pytest.mark.parametrize(
    ("query", "field"),
    [({"limit": 201}, "limit"), ({"limit": 0}, "limit"), ({"offset": -1}, "offset"), ({"status": "DONE"}, "status"),
     ({"source": "ME"}, "source"), ({"eval_run_id": "1"}, "eval_run_id"), ({"date_from": "soon"}, "date_from"),
     ({"session_id": "s" * 256}, "session_id")],
)  # fmt: skip
async def test_a_filter_that_cannot_be_is_a_422(client: httpx.AsyncClient, query: dict[str, Any], field: str) -> None:
    answer = await client.get(SCORES, params=query)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field


async def test_scores_of_any_session_can_be_read(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "another")
    await put(database, *(a_score(project, name.replace("\x00", "\ufffd")) for name in STRANGE))
    for name in STRANGE:
        answer = await client.get(f"http://steelyard{SCORES}/{spelled(name)}")
        assert answer.status_code == 200, (name, answer.text)
        assert [s["session_id"] for s in answer.json()] == [name.replace("\x00", "\ufffd")]
        assert len(await listed(client, session_id=name)) == 1


async def test_a_session_without_scores_has_none_and_an_unknown_one_is_a_404(
    client: httpx.AsyncClient, database: Database
) -> None:
    project = await new_session(client, "s")
    assert (await client.get(f"{SCORES}/s")).json() == []
    assert (await client.get(f"{SCORES}/unknown")).status_code == 404
    await put(database, a_score(project, "its traces are gone"))
    assert len((await client.get(f"{SCORES}/its traces are gone")).json()) == 1
    foreign = await client.get(f"{SCORES}/s", headers={"X-Project-Name": "other"})
    assert (foreign.status_code, foreign.json()) == (404, {"detail": "Session not found"})


async def test_all_scores_of_a_session_are_read_newest_first(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s")
    for day in (1, 0, 2):
        both = (a_score(project, "s", name=n, traces_seen=day) for n in ("agent_reliability", "agent_consistency"))
        await put(database, *both, day=day)
    read = [(s["traces_seen"], s["name"]) for s in (await client.get(f"{SCORES}/s")).json()]
    assert read == [(d, n) for d in (2, 1, 0) for n in ("agent_consistency", "agent_reliability")]


async def test_a_score_is_deleted_once_and_by_its_project_alone(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s")
    first, second = map(str, await put(database, a_score(project, "s"), a_score(project, "s")))
    assert (await client.delete(f"{SCORES}/{first}", headers={"X-Project-Name": "other"})).status_code == 404
    assert (await client.delete(f"{SCORES}/{first}")).status_code == 204
    again = await client.delete(f"{SCORES}/{first}")
    assert (again.status_code, again.json()) == (404, {"detail": "Score not found"})
    assert await listed(client) == [second]


@pytest.mark.parametrize("path", ["s", "a%2Fb", "1"])
async def test_what_is_deleted_is_named_by_the_scores_id(client: httpx.AsyncClient, path: str) -> None:
    await new_session(client, "s")
    answer = await client.delete(f"{SCORES}/{path}")
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "score_id"


async def test_a_deleted_session_takes_its_own_scores_along(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s", 2)
    other = await new_session(client, "other")
    await put(database, a_score(project, "s"), a_score(project, "s", None))
    (kept,) = await put(database, a_score(other, "other"))
    assert (await client.delete("/sessions/s")).json() == {"deleted": 2}
    assert await listed(client) == [str(kept)]
    assert (await client.get(f"{SCORES}/s")).status_code == 404


async def test_scores_that_outlived_their_traces_go_with_the_sessions_name(
    client: httpx.AsyncClient, database: Database
) -> None:
    project = await new_session(client, "s")
    await put(database, a_score(project, "s"))
    (trace,) = (await client.get("/sessions/s")).json()["traces"]
    await client.delete(f"/traces/{trace['trace_id']}")
    assert (await client.get("/sessions/s")).status_code == 404 and len(await listed(client)) == 1
    assert (await client.delete("/sessions/s", headers={"X-Project-Name": "other"})).status_code == 404
    assert (await client.delete("/sessions/s")).json() == {"deleted": 0}
    assert await listed(client) == [] and (await client.delete("/sessions/s")).status_code == 404


async def test_a_score_that_is_written_twice_is_there_once(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "s")
    score = a_score(project, "s", 0.25)
    await put(database, score)
    await put(database, score | {"value": "0.75"})
    async with database.begin() as tx:
        assert (await tx.execute(text("SELECT value FROM session_scores"))).scalars().all() == ["0.25"]


async def test_a_long_run_is_answered_as_one_array_in_its_order(client: httpx.AsyncClient, database: Database) -> None:
    """It is read and sent in pages; nobody sees where one ends."""
    await new_session(client, "s")
    run = (await client.post(RUNS, json={"metrics": ["agent_reliability"]})).json()
    names = [f"session {n:04}" for n in range(450)]
    project, run_id = UUID(run["project_id"]), UUID(run["id"])
    await put(database, *(a_score(project, name, 0.5, eval_run_id=run_id) for name in reversed(names)))
    answer = await client.get(f"{RUNS}/{run['id']}/scores")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert [s["session_id"] for s in answer.json()] == names
