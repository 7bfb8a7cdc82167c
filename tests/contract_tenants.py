"""What a tenant matrix is made of: every route, every place of a request that may name something, and what a project has."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import text

from steelyard.store import session_scores
from steelyard.store.database import Database

Named = Mapping[str, str]  # a project's things, by the words with which requests name them
Place = tuple[str, ...]  # ("query", "trace_id"), ("body", "spans", "[]", "span_id")
Asked = dict[str, Any]  # parts of a request: path, query, header, body
METRIC, OF_SESSIONS = "coherence", "agent_reliability"
SINCE, UNTIL = "2026-03-01T00:00:00Z", "2026-03-03T00:00:00Z"
# Nobody's project is asked about there.
PUBLIC = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/healthz", "/readyz", "/metrics")
# Runs and scores are of traces, or of sessions; the contract calls the ids of both alike.
OF_EITHER = {"run_id": "session_run_id", "eval_run_id": "session_run_id", "score_id": "session_score_id"}
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WHEN = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|\+00:00)")
BODY_WORDS = ("session_id", "session_ids", "user_id")  # a body's other texts are what is said, not whose it is


def recipes(own: Named) -> Mapping[str, Sequence[Asked]]:
    """Requests that a project makes about its own things, and that work; ids in paths are filled in, where a recipe names
    no other. A new route goes here; several requests where a parameter decides what is done with an id."""
    span = {"span_id": str(uuid4()), "parent_span_id": own["span_id"], "name": "step", "started_at": SINCE}
    trace = {"trace_id": own["trace_id"], "name": "again", "started_at": SINCE, "spans": [span]}
    score = {"trace_id": own["trace_id"], "name": "quality", "value": "0.5"}
    window = {"started_after": SINCE, "started_before": UNTIL}
    ids, metric = [own["trace_id"], own["other_trace_id"]], {"metric_name": own["metric_name"]}
    return {
        "POST /traces": [{"body": trace}],
        "GET /traces": [{}],
        "GET /traces/analytics": [{"query": window | {"metric": m}} for m in ("volume", "cost", "models")],
        "GET /traces/users": [{}],
        "POST /traces/batch/delete": [{"body": {"trace_ids": ids}}],
        "POST /traces/batch/tags": [{"body": {"trace_ids": ids, "add_tags": ["seen"], "remove_tags": [own["tags"]]}}],
        "GET /traces/{trace_id}": [{}],
        "PATCH /traces/{trace_id}": [{"body": {"output": "changed", "session_id": own["session_id"]}}],
        "DELETE /traces/{trace_id}": [{}],
        "POST /traces/{trace_id}/spans": [{"body": [span]}],
        "PATCH /traces/{trace_id}/spans/{span_id}": [{"body": {"output": "changed"}}],
        "GET /sessions": [{}],
        "GET /sessions/analytics": [{"query": window}],
        "GET /sessions/{session_id}": [{}],
        "DELETE /sessions/{session_id}": [{}],
        "GET /evaluations/providers": [{}],
        "GET /evaluations/trace-metrics": [{}],
        "GET /evaluations/trace-runs/template": [{"query": {"metric": METRIC}}],
        "POST /evaluations/trace-runs": [{"body": {"metrics": [METRIC]}}],
        "GET /evaluations/trace-runs": [{}],
        "POST /evaluations/trace-runs/batch": [{"body": {"trace_ids": ids, "metrics": [METRIC]}}],
        "GET /evaluations/trace-runs/{run_id}": [{}],
        "DELETE /evaluations/trace-runs/{run_id}": [{}, {"query": {"delete_scores": "true"}}],
        "POST /evaluations/trace-runs/{run_id}/retry": [{}],
        "POST /evaluations/trace-runs/{run_id}/resume": [{"path": {"run_id": own["paused_run_id"]}}],
        "GET /evaluations/trace-runs/{run_id}/scores": [{}],
        "GET /evaluations/trace-runs/{run_id}/usage": [{}],
        "POST /evaluations/trace-runs/estimate": [{"body": {"metrics": [METRIC]}}],
        "GET /evaluations/usage": [{}],
        "POST /evaluations/trace-scores": [{"body": score | {"source": s}} for s in ("ANNOTATION", "PROGRAMMATIC")],
        "GET /evaluations/trace-scores": [{}],
        "GET /evaluations/trace-scores/{trace_id}": [{}],
        "GET /evaluations/trace-scores/{score_id}/history": [{}],
        "PATCH /evaluations/trace-scores/{score_id}": [{"body": {"value": "0.1"}}],
        "DELETE /evaluations/trace-scores/{score_id}": [{}],
        "GET /evaluations/analytics/trace-scores/summary": [{}],
        "GET /evaluations/analytics/trace-scores/trend": [{"query": metric}],
        "GET /evaluations/analytics/trace-scores/distribution": [{"query": metric}],
        "GET /evaluations/session-metrics": [{}],
        "POST /evaluations/session-runs": [{"body": {"metrics": [OF_SESSIONS]}}],
        "GET /evaluations/session-runs": [{}],
        "POST /evaluations/session-runs/batch": [
            {"body": {"session_ids": [own["session_id"]], "metrics": [OF_SESSIONS]}}
        ],
        "POST /evaluations/session-runs/estimate": [{"body": {"metrics": [OF_SESSIONS]}}],
        "GET /evaluations/session-runs/{run_id}": [{}],
        "DELETE /evaluations/session-runs/{run_id}": [{}, {"query": {"delete_scores": "true"}}],
        "POST /evaluations/session-runs/{run_id}/retry": [{}],
        "POST /evaluations/session-runs/{run_id}/resume": [{"path": {"run_id": own["paused_session_run_id"]}}],
        "GET /evaluations/session-runs/{run_id}/scores": [{}],
        "GET /evaluations/session-runs/{run_id}/usage": [{}],
        "GET /evaluations/session-scores": [{}],
        "GET /evaluations/session-scores/{session_id}": [{}],
        "DELETE /evaluations/session-scores/{score_id}": [{}],
        "GET /evaluations/analytics/session-scores/summary": [{}],
        "GET /evaluations/analytics/session-scores/trend": [{"query": metric}],
        "GET /evaluations/analytics/session-scores/distribution": [{"query": metric}],
        "GET /evaluations/analytics/session-scores/comparison": [{"query": metric}],
        "GET /evaluations/analytics/session-scores/history/{session_id}": [{}],
    }


def routes(app: FastAPI) -> dict[str, list[Place]]:
    """Every documented route that is about a project, with each place of it that may name something."""
    document = app.openapi()
    found: dict[str, list[Place]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if not path.startswith("/admin/"):
                found[f"{method.upper()} {path}"] = list(dict.fromkeys(_places(operation, document)))
    return found


def undocumented(app: FastAPI) -> set[str]:
    """Paths that answer and that the document leaves out: a matrix made of the document alone would miss them."""
    documented = {(m.upper(), path) for path, methods in app.openapi()["paths"].items() for m in methods}
    there = {(m, re.sub(r":\w+}", "}", r.path)) for r in _served(app.routes) for m in r.methods or ()}
    return {path for _, path in there - documented}


def _served(some: Sequence[Any]) -> Iterator[APIRoute]:
    for route in some:
        if (router := getattr(route, "original_router", None)) is not None:  # how FastAPI keeps an included router
            yield from _served(router.routes)
        elif isinstance(route, APIRoute):
            yield route


def _places(operation: Any, document: Any) -> Iterator[Place]:
    for parameter in operation.get("parameters", ()):
        yield from _of(parameter["schema"], document, (parameter["in"], parameter["name"]))
    content = operation.get("requestBody", {}).get("content", {})
    yield from _of(content.get("application/json", {}).get("schema", {}), document, ("body",))


def _of(schema: Any, document: Any, at: Place) -> Iterator[Place]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for other in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from _of(other, document, at)
    for name, inner in schema.get("properties", {}).items():
        yield from _of(inner, document, (*at, name))
    if "items" in schema:
        yield from _of(schema["items"], document, (*at, "[]"))
    if schema.get("type") == "string" and _may_name(schema, at):
        yield at


def _may_name(schema: Any, at: Place) -> bool:
    if schema.get("format") == "uuid" or at[0] == "path":
        return True
    free = not {"enum", "const", "format"} & schema.keys()
    return free and (at[0] != "body" or "filters" in at or word(at) in BODY_WORDS)


def word(at: Place, route: str = "") -> str:
    last = [step for step in at if step != "[]"][-1]
    return OF_EITHER.get(last, last) if "/session-" in route else last


def placed(into: Any, at: Sequence[str], value: str) -> Any:
    """A copy in which the value stands at this place, and the rest is as it was."""
    if not at:
        return value
    if at[0] == "[]":
        first, *others = into or [None]
        return [placed(first, at[1:], value), *others]
    return {**(into or {}), at[0]: placed((into or {}).get(at[0]), at[1:], value)}


async def send(client: httpx.AsyncClient, route: str, asked: Asked, who: Named) -> httpx.Response:
    method, path = route.split(" ", 1)
    url = path.format(**{name: quote(value, safe="") for name, value in asked["path"].items()})
    more = {} if asked.get("body") is None else {"json": asked["body"]}
    headers = {**who, **asked.get("header", {})}
    return await client.request(method, url, params=asked.get("query"), headers=headers, **more)


def request(route: str, variant: int, path: Sequence[Place], own: Named) -> Asked:
    """One of the requests about a project's own things, ready to be sent."""
    recipe = recipes(own)[route][variant]
    return recipe | {
        "path": {word(at): own[word(at, route)] for at in path if at[0] == "path"} | recipe.get("path", {})
    }


def told(answer: httpx.Response, said: Named, own: Named, kept: Set[str]) -> tuple[int, str, dict[str, str]]:
    """An answer without what differs anyhow: what was asked about, what the asker has, times, and ids but for these."""
    body = answer.text
    for value, name in sorted(_words(said, own), key=lambda pair: -len(pair[0])):
        body = body.replace(value, f"<{name}>")
    body = _WHEN.sub("<when>", _UUID.sub(lambda found: found[0] if found[0] in kept else "<id>", body))
    left_out = ("x-request-id", "content-length")
    return answer.status_code, body, {k: v for k, v in answer.headers.items() if k not in left_out}


def ids_in(said: str) -> frozenset[str]:
    return frozenset(_UUID.findall(said))


def _words(said: Named, own: Named) -> Iterator[tuple[str, str]]:
    """The same text may be named by several words: then it is known by the first."""
    seen = dict[str, str]()
    for whose, names in (("asked", said), ("own", own)):
        for name, value in names.items():
            seen.setdefault(value, f"{whose} {name}")
    yield from seen.items()


def unknown(named: Named) -> Named:
    """For each word something that nobody has, of the same form."""
    made = dict[str, str]()
    for name, value in named.items():
        made[name] = str(uuid4()) if _UUID.fullmatch(value) else f"nobody-{uuid4().hex}"
    return made


class Settled:
    """A project with something in every table, made by requests; what only services write is written for them."""

    def __init__(self, client: httpx.AsyncClient, who: Named, workers: Database, mark: str) -> None:
        self._client, self._who, self._workers = client, who, workers
        self.mark, self._key = mark, {"Idempotency-Key": f"{mark}-key"}
        self.words: dict[str, str] = {"Idempotency-Key": f"{mark}-key", "metric": mark, "query": f"{mark}-session"}
        for name in ("name", "metric_name"):
            self.words[name] = mark
        for name in ("session_id", "user_id", "tags", "environment"):
            self.words[name] = f"{mark}-{name.removesuffix('_id')}"

    async def __call__(self) -> Named:
        for name in ("trace_id", "other_trace_id"):
            self.words[name] = (await self._post("/traces", self._trace()))["trace_id"]
        self.words |= {"trace_ids": self.words["trace_id"], "session_ids": self.words["session_id"]}
        spans = await self._post(f"/traces/{self.words['trace_id']}/spans", [self._span()], self._key)
        self.words |= {"span_id": spans["span_ids"][0], "parent_span_id": spans["span_ids"][0]}
        await self._scored()
        await self._evaluated()
        await self._evaluated_as_sessions()
        return self.words

    async def _scored(self) -> None:
        score = {"trace_id": self.words["trace_id"], "name": self.mark, "value": "0.9", "reason": self.mark}
        self.words["score_id"] = (await self._post("/evaluations/trace-scores", score, self._key))["id"]
        changed = await self._client.patch(
            f"/evaluations/trace-scores/{self.words['score_id']}", json={"value": "0.8"}, headers=self._who
        )
        assert changed.status_code == 200, changed.text
        await self._post("/evaluations/trace-scores", score | {"trace_id": str(uuid4()), "source": "PROGRAMMATIC"})

    async def _evaluated(self) -> None:
        """A run that is over, one of its pairs failed: there is something to read, to retry and to delete. And one that is
        paused."""
        asked = {"metrics": [METRIC], "name": self.mark, "trace_ids": [self.words["trace_id"]]}
        run = (await self._post("/evaluations/trace-runs/batch", asked, self._key))["id"]
        self.words |= {"run_id": run, "eval_run_id": run}
        async with self._workers.begin() as tx:
            for statement in _RUN_IS_OVER:
                await tx.execute(text(statement), {"run": UUID(run), "trace": UUID(self.words["trace_id"])})
        self.words["paused_run_id"] = (await self._post("/evaluations/trace-runs/batch", asked))["id"]
        async with self._workers.begin() as tx:
            await tx.execute(text(_RUN_IS_PAUSED), {"run": UUID(self.words["paused_run_id"])})

    async def _evaluated_as_sessions(self) -> None:
        """The same of a run of sessions."""
        asked = {"metrics": [OF_SESSIONS], "name": self.mark, "session_ids": [self.words["session_id"]]}
        run = await self._post("/evaluations/session-runs/batch", asked, self._key)
        said = {
            "value": "0.5",
            "status": "SUCCESS",
            "reason": self.mark,
            "session_version": self.mark,
            "traces_seen": 2,
        }
        about = {"project_id": run["project_id"], "session_id": self.words["session_id"], "eval_run_id": run["id"]}
        score: dict[str, Any] = {
            "id": str(uuid4()),
            "name": self.mark,
            "metadata": {"worst_trace": self.mark},
            "snapshot_at": SINCE,
        }
        self.words |= {"session_run_id": run["id"], "session_score_id": score["id"]}
        async with self._workers.begin() as tx:
            for statement in _SESSION_RUN_IS_OVER:
                await tx.execute(text(statement), {"run": UUID(run["id"])})
            await session_scores.put(tx, [score | about | said])
        paused = (await self._post("/evaluations/session-runs/batch", asked))["id"]
        self.words["paused_session_run_id"] = paused
        async with self._workers.begin() as tx:
            await tx.execute(text(_RUN_IS_PAUSED), {"run": UUID(paused)})

    async def _post(self, url: str, body: Any, headers: Named | None = None) -> Any:
        answer = await self._client.post(url, json=body, headers={**self._who, **(headers or {})})
        assert answer.status_code < 300, answer.text
        return answer.json()

    def _trace(self) -> dict[str, Any]:
        said = {name: self.words[name] for name in ("name", "session_id", "user_id", "environment")}
        more = {"started_at": "2026-03-01T10:00:00Z", "ended_at": "2026-03-01T10:00:01Z", "spans": [self._span()]}
        return {**said, **more, "tags": [self.words["tags"]], "input": self.mark, "output": self.mark}

    def _span(self) -> dict[str, Any]:
        used = {"model": self.mark, "token_usage": {"total_tokens": 7}, "cost": {"total": 0.5}}
        return {"name": self.mark, "kind": "LLM", "started_at": "2026-03-01T10:00:00Z", "input": self.mark, **used}


_SESSION_RUN_IS_OVER = (
    "UPDATE targets SET failed_metrics = ARRAY['agent_reliability'] WHERE run_id = :run",
    "INSERT INTO folds (run_id, target, project_id, size) SELECT run_id, target, project_id, 1 FROM targets WHERE run_id = :run",
    "UPDATE runs SET status = 'COMPLETED', failed_count = 1, evaluated_count = 1, completed_at = now() WHERE id = :run",
)
_RUN_IS_PAUSED = "UPDATE runs SET paused_why = 'no quota', paused_until = now() + interval '1 hour' WHERE id = :run"
_RUN_IS_OVER = (
    "DELETE FROM pairs WHERE run_id = :run AND trace_id = :trace",
    """
    INSERT INTO pairs (run_id, trace_id, metric, project_id, target, status, outcome, reason)
    SELECT id, :trace, 'coherence', project_id, CAST(CAST(:trace AS uuid) AS text), 'settled', 'FAILED', 'no'
    FROM runs WHERE id = :run
    """,
    "UPDATE runs SET status = 'COMPLETED', failed_count = 1, evaluated_count = 1, completed_at = now() WHERE id = :run",
    """
    INSERT INTO trace_scores (id, project_id, trace_id, eval_run_id, name, status, reason)
    SELECT gen_random_uuid(), project_id, CAST(:trace AS uuid), id, 'coherence', 'FAILED', 'no' FROM runs WHERE id = :run
    """,
    """
    INSERT INTO calls (
        project_id, run_id, trace_id, metric, metric_version, stage, model, attempt, outcome, input_tokens, output_tokens,
        cached_tokens, cost, seconds
    )
    SELECT project_id, id, :trace, 'coherence', '1', 'grade', 'a model', 0, 'ok', 1, 1, 0, 0.5, 1 FROM runs WHERE id = :run
    """,
    "INSERT INTO run_spending (run_id, project_id, calls, cost) SELECT id, project_id, 1, 0.5 FROM runs WHERE id = :run",
    """
    INSERT INTO answers (project_id, root_run_id, key, model, reply)
    SELECT project_id, id, 'asked', 'a model', '{"word": "yes"}' FROM runs WHERE id = :run
    """,
)
