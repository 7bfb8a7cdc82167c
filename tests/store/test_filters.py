"""A filter's two readings agree: what SQL finds is what the value itself matches."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addresses import Urls
from spine import new_project
from steelyard.filters import TraceFilters
from steelyard.store import traces
from steelyard.store.database import Database
from steelyard.traces import Trace, TraceStatus

START = datetime(2026, 3, 1, tzinfo=UTC)
SESSIONS, USERS, TAGS = ("s1", "s/2", "ß"), ("u1", "u2"), ("a", "b", "c%", "ü")
NAMES = ("Book a flight", "100% sure", "a_b", "ÄPFEL kaufen", "book\\shelf")
WHEN = st.integers(0, 5).map(lambda n: START + timedelta(hours=n))
FILTERS = st.builds(
    TraceFilters,
    date_from=st.none() | WHEN,
    date_to=st.none() | WHEN,
    status=st.none() | st.sampled_from(TraceStatus),
    session_id=st.none() | st.sampled_from(SESSIONS),
    user_id=st.none() | st.sampled_from(USERS),
    tags=st.none() | st.lists(st.sampled_from(TAGS), max_size=2).map(tuple),
    name=st.none() | st.sampled_from(("book", "%", "_", "FLIGHT", "äpfel", "\\", "nothing")),
)


async def some_traces(database: Database, project: UUID) -> list[Trace]:
    made = []
    async with database.begin() as tx:
        for n in range(40):
            fields = {
                "trace_id": uuid4(),
                "name": NAMES[n % len(NAMES)],
                "status": list(TraceStatus)[n % 4].value,
                "started_at": START + timedelta(hours=n % 6),
                "session_id": (*SESSIONS, None)[n % 4],
                "user_id": (*USERS, None)[n % 3],
                "tags": list(TAGS[: n % 5]),
            }
            await traces.put(tx, project, fields, [])
            made.append(Trace(project_id=project, **fields | {"tags": tuple(fields["tags"])}))  # type: ignore[arg-type]
    return made


async def test_sql_and_memory_agree(database: Database, urls: Urls) -> None:
    project = await new_project(urls)
    made = await some_traces(database, project)
    found: list[TraceFilters] = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(FILTERS)
    def collect(filters: TraceFilters) -> None:
        found.append(filters)

    collect()
    async with database.begin() as tx:
        for filters in found:
            listed, total = await traces.page(tx, project, filters, "started_at", True, 200, 0)
            expected = {t.trace_id for t in made if filters.matches(t)}
            assert {t["trace_id"] for t in listed} == expected, filters
            assert total == len(expected)
            assert (await traces.matching(tx, project, filters))[0] == total
