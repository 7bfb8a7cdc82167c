"""What is asked of the lists: every route that answers with many rows, every filter, every order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Samples = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Ask:
    """`{session}` and the like stand for a value of the data, another one each time."""

    group: str
    path: str

    def fill(self, samples: Samples, n: int) -> str:
        return self.path.format(**{name: values[n % len(values)] for name, values in samples.items()})


def asks() -> list[Ask]:
    groups = {
        "traces": [*_TRACES, *_sorted("/traces", ("started_at", "ended_at", "name", "latency", "status"))],
        "sessions": [*_SESSIONS, *_sorted("/sessions", ("recent", "trace_count", "latency", "cost"))],
        "users": _USERS,
        "runs": _RUNS,
        "scores": _SCORES,
        "one thing": _ONE,
        "analytics": _ANALYTICS,
        "substrings": _SUBSTRINGS,
    }
    return [Ask(group, path) for group, paths in groups.items() for path in paths]


def _sorted(route: str, names: Sequence[str]) -> list[str]:
    return [f"{route}?sort_by={name}&sort_order={order}" for name, order in product(names, ("asc", "desc"))]


_TRACES = (
    "/traces",
    "/traces?limit=200",
    "/traces?offset=10000",
    "/traces?limit=200&offset=10000",
    "/traces?session_id={session}",
    "/traces?user_id={user}",
    "/traces?user_id=user-busy",
    "/traces?user_id=nobody",
    "/traces?status=COMPLETED",
    "/traces?status=ERROR",
    "/traces?status=RUNNING",
    "/traces?status=PENDING",
    "/traces?tags=chat",
    "/traces?tags=beta",
    "/traces?tags=incident",
    "/traces?tags=none",
    "/traces?tags=incident&tags=beta",
    "/traces?started_after={day}",
    "/traces?started_after={week}",
    "/traces?started_before={week}",
    "/traces?started_after={month}&started_before={week}",
    "/traces?started_after={week}&status=ERROR&tags=beta",
    "/traces?sort_by=name&offset=10000",
    "/traces?sort_by=latency&offset=10000",
)
_SESSIONS = (
    "/sessions",
    "/sessions?limit=200",
    "/sessions?offset=10000",
    "/sessions?user_id={user}",
    "/sessions?user_id=user-busy",
    "/sessions?has_error=true",
    "/sessions?has_error=false",
    "/sessions?tags=chat",
    "/sessions?tags=incident",
    "/sessions?tags=none",
    "/sessions?started_after={week}",
    "/sessions?started_before={month}",
    "/sessions?started_after={month}&started_before={week}",
)
_USERS = ("/traces/users", "/traces/users?limit=200", "/traces/users?offset=4000")
_RUNS = (
    "/evaluations/trace-runs",
    "/evaluations/trace-runs?status=COMPLETED",
    "/evaluations/trace-runs?status=FAILED",
    "/evaluations/trace-runs/{run}",
)
_SCORES = (
    "/evaluations/trace-scores",
    "/evaluations/trace-scores?limit=200",
    "/evaluations/trace-scores?offset=10000",
    "/evaluations/trace-scores?trace_id={scored}",
    "/evaluations/trace-scores?name=confidence",
    "/evaluations/trace-scores?name=nothing",
    "/evaluations/trace-scores?source=AUTOMATED",
    "/evaluations/trace-scores?source=ANNOTATION",
    "/evaluations/trace-scores?status=SUCCESS",
    "/evaluations/trace-scores?status=FAILED",
    "/evaluations/trace-scores?status=PENDING",
    "/evaluations/trace-scores?data_type=NUMERIC",
    "/evaluations/trace-scores?data_type=BOOLEAN",
    "/evaluations/trace-scores?data_type=CATEGORICAL",
    "/evaluations/trace-scores?eval_run_id={run}",
    "/evaluations/trace-scores?environment=production",
    "/evaluations/trace-scores?environment=development",
    "/evaluations/trace-scores?date_from={week}",
    "/evaluations/trace-scores?date_from={month}&date_to={week}",
    "/evaluations/trace-scores?name=resolved&status=FAILED&date_from={month}",
    "/evaluations/trace-scores/{scored}",
)
_ONE = ("/traces/{trace}", "/sessions/{session}")
_ANALYTICS = (
    *(
        f"/traces/analytics?metric={metric}&granularity=day&started_after={{begin}}&started_before={{end}}"
        for metric in ("volume", "errors", "latency", "cost", "tokens", "models")
    ),
    "/traces/analytics?metric=volume&granularity=hour&started_after={week}&started_before={end}",
    "/sessions/analytics?granularity=day&started_after={begin}&started_before={end}",
    "/evaluations/analytics/trace-scores/summary",
    "/evaluations/analytics/trace-scores/summary?date_from={week}",
    "/evaluations/analytics/trace-scores/trend?metric_name=confidence",
    "/evaluations/analytics/trace-scores/trend?metric_name=confidence&granularity=hour&date_from={week}",
    "/evaluations/analytics/trace-scores/distribution?metric_name=confidence",
    "/evaluations/analytics/trace-scores/distribution?metric_name=confidence&date_from={week}",
    "/evaluations/trace-runs/{run}/scores",
)
_SUBSTRINGS = (
    "/traces?name=export",
    "/traces?name=support",
    "/traces?name=nowhere",
    "/sessions?query=1999",
    "/sessions?query=nowhere",
)
