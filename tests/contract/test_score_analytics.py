"""/evaluations/analytics/trace-scores: right at the edges."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from addresses import Urls
from contract_helpers import new_trace
from spine import new_project
from steelyard.store import scores
from steelyard.store.database import Database, Tx

ANALYTICS = "/evaluations/analytics/trace-scores"
Row = tuple[str, str | None, str, str, str]  # name, value, data type, status, created


async def put(tx: Tx, project: UUID, rows: Sequence[Row]) -> None:
    for name, value, kind, status, at in rows:
        await tx.execute(
            text(
                """
                INSERT INTO trace_scores (id, project_id, trace_id, name, value, data_type, status, created_at)
                VALUES (:id, :project, :id, :name, :value, :kind, :status, :at)
                """
            ),
            {
                "id": uuid4(), "project": project, "name": name, "value": value, "kind": kind, "status": status,
                "at": datetime.fromisoformat(at),
            },
        )  # fmt: skip


@pytest.fixture
async def project(client: httpx.AsyncClient) -> UUID:
    trace = await new_trace(client)
    return UUID((await client.get(f"/traces/{trace}")).json()["project_id"])


async def ask(client: httpx.AsyncClient, what: str, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get(f"{ANALYTICS}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json())


AT = "2026-01-01T00:30:00+00:00"


async def test_nothing_is_summed_up_as_nothing(client: httpx.AsyncClient, project: UUID) -> None:
    assert await ask(client, "summary") == []
    assert await ask(client, "trend", metric_name="m") == []
    empty = await ask(client, "distribution", metric_name="m", buckets=4)
    assert [(b["bucket"], b["bucket_min"], b["bucket_max"], b["count"]) for b in empty] == [
        (1, 0.0, 0.25, 0), (2, 0.25, 0.5, 0), (3, 0.5, 0.75, 0), (4, 0.75, 1.0, 0),
    ]  # fmt: skip


async def test_a_summary_tells_numbers_from_words_and_failures(
    client: httpx.AsyncClient, database: Database, project: UUID
) -> None:
    async with database.begin() as tx:
        await put(tx, project, [
            ("a", "0.5", "NUMERIC", "SUCCESS", AT), ("a", "1", "NUMERIC", "SUCCESS", "2026-01-02T00:00:00+00:00"),
            ("a", None, "NUMERIC", "FAILED", AT), ("a", "0.1", "NUMERIC", "PENDING", AT),
            ("b", "true", "BOOLEAN", "SUCCESS", AT), ("b", "false", "BOOLEAN", "SUCCESS", AT),
            ("c", "PASS", "CATEGORICAL", "SUCCESS", AT), ("d", None, "NUMERIC", "FAILED", AT),
        ])  # fmt: skip
    rows = [tuple(r.values()) for r in await ask(client, "summary")]
    at = "2026-01-01T00:30:00Z"
    assert rows == [
        ("a", 0.75, 0.5, 1.0, 0.75, 2, 1, "2026-01-02T00:00:00Z"),
        ("b", 0.5, 0.0, 1.0, 0.5, 2, 0, at),
        ("c", None, None, None, None, 1, 0, at),
        ("d", None, None, None, None, 0, 1, at),
    ]
    some = await ask(client, "summary", date_from="2026-01-01T00:30:00Z", date_to="2026-01-02T00:00:00Z")
    assert some[0]["avg_score"] == 0.5 and some[0]["success_count"] == 1


async def test_a_trend_is_by_utc_and_weeks_cross_the_years_end(
    client: httpx.AsyncClient, database: Database, project: UUID
) -> None:
    async with database.begin() as tx:
        await put(tx, project, [
            ("m", "0.2", "NUMERIC", "SUCCESS", "2025-12-31T23:59:59.999999+00:00"), ("m", "0.4", "NUMERIC", "SUCCESS", AT),
            ("m", "true", "BOOLEAN", "SUCCESS", "2026-01-05T00:00:00+00:00"), ("m", None, "NUMERIC", "FAILED", AT),
            ("m", "PASS", "CATEGORICAL", "SUCCESS", "2026-02-01T00:00:00+00:00"), ("x", "1", "NUMERIC", "SUCCESS", AT),
        ])  # fmt: skip

    async def buckets(granularity: str) -> list[tuple[str, float, int]]:
        found = await ask(client, "trend", metric_name="m", granularity=granularity)
        assert all(b["metric_name"] == "m" for b in found)
        return [(b["bucket"], round(b["avg_score"], 9), b["count"]) for b in found]

    assert await buckets("week") == [("2025-12-29T00:00:00Z", 0.3, 2), ("2026-01-05T00:00:00Z", 1.0, 1)]
    assert await buckets("day") == [
        ("2025-12-31T00:00:00Z", 0.2, 1), ("2026-01-01T00:00:00Z", 0.4, 1), ("2026-01-05T00:00:00Z", 1.0, 1),
    ]  # fmt: skip
    assert (await buckets("hour"))[1] == ("2026-01-01T00:00:00Z", 0.4, 1)


async def test_a_histogram_holds_every_value_once(client: httpx.AsyncClient, database: Database, project: UUID) -> None:
    values = ("0", "0.1", "0.29", "0.3", "0.7", "0.99", "1.0", "1")
    async with database.begin() as tx:
        await put(tx, project, [("m", v, "NUMERIC", "SUCCESS", AT) for v in values])
        await put(tx, project, [("m", "true", "BOOLEAN", "SUCCESS", AT), ("m", None, "NUMERIC", "FAILED", AT)])
    ten = await ask(client, "distribution", metric_name="m")
    assert [b["count"] for b in ten] == [1, 1, 1, 1, 0, 0, 0, 1, 0, 4]
    hundred = await ask(client, "distribution", metric_name="m", buckets=100)
    assert {b["bucket_min"] for b in hundred if b["count"]} == {0, 0.1, 0.29, 0.3, 0.7, 0.99}
    (one,) = await ask(client, "distribution", metric_name="m", buckets=1)
    assert (one["bucket_min"], one["bucket_max"], one["count"]) == (0, 1, 9)


@pytest.mark.parametrize(
    ("what", "query", "field"),
    [
        ("trend", {}, "metric_name"), ("distribution", {}, "metric_name"), ("trend", {"granularity": "year"}, "granularity"),
        ("distribution", {"buckets": 0}, "buckets"), ("distribution", {"buckets": 101}, "buckets"),
        ("summary", {"date_from": "soon"}, "date_from"), ("trend", {"metric_name": ""}, "metric_name"),
    ],
)  # fmt: skip
async def test_a_question_that_cannot_be_is_a_422(
    client: httpx.AsyncClient, what: str, query: dict[str, Any], field: str
) -> None:
    asked = ({} if field == "metric_name" else {"metric_name": "m"}) | query
    answer = await client.get(f"{ANALYTICS}/{what}", params=asked)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field


NUMBERS = st.floats(0, 1).map(repr) | st.integers(0, 100).map(lambda n: repr(n / 100))


async def test_analytics_agree_with_a_naive_count(api_database: Database, database: Database, urls: Urls) -> None:
    drawn: list[tuple[list[str], int]] = []

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 20))
    def collect(values: list[str], buckets: int) -> None:
        drawn.append((values, buckets))

    collect()
    for values, buckets in drawn:
        project = await new_project(urls, str(uuid4()))
        async with database.begin() as tx:
            await put(tx, project, [("m", v, "NUMERIC", "SUCCESS", AT) for v in values])
        async with api_database.begin(project) as tx:
            found = await scores.distribution(tx, project, "m", buckets, None, None)
            (summed,) = await scores.summary(tx, project, None, None)
        assert sum(b["count"] for b in found) == len(values)
        for b in found:
            # 15 digits is what the numbers of a score are told apart by.
            inside = [v for v in values if b["bucket_min"] + 1e-14 < float(v) < b["bucket_max"] - 1e-14]
            edges = [
                v for v in values if min(abs(float(v) - b["bucket_min"]), abs(float(v) - b["bucket_max"])) <= 1e-14
            ]
            assert len(inside) <= b["count"] <= len(inside) + len(edges), (values, b)
        numbers = sorted(map(float, values))
        assert summed["avg_score"] == pytest.approx(sum(numbers) / len(numbers), abs=1e-12)
        assert (summed["min_score"], summed["max_score"]) == (numbers[0], numbers[-1])
        middle = (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
        assert summed["median_score"] == pytest.approx(middle, abs=1e-12)
