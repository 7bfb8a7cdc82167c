"""/openapi.json and /docs: what the API says about itself is whole, and its examples run."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from contract.conftest import new_key
from contract_helpers import new_trace
from steelyard.store.database import Database
from steelyard_api.shapes import EXAMPLE

BODIES = ("post", "patch", "put")


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/openapi.json")).json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for verb, operation in methods.items():
            yield verb, path, operation


def example_of(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
    if schema.get("type") == "array":
        return [example_of(document, schema["items"])]
    return schema["examples"][0]


async def test_every_operation_and_every_field_is_explained(document: dict[str, Any]) -> None:
    silent = [
        f"{v} {p}"
        for v, p, o in operations(document)
        if not (o.get("summary") and o.get("description") and o.get("tags"))
    ]
    silent += [
        f"{verb} {path}: parameter {a['name']}"
        for verb, path, operation in operations(document)
        for a in operation.get("parameters", ())
        if not a.get("description")
    ]
    silent += [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, told in schema.get("properties", {}).items()
        if not told.get("description")
    ]
    assert silent == [], "say it at the field, or in WORDS where it means the same everywhere"


async def test_every_status_has_a_description_and_refusals_one_shape(document: dict[str, Any]) -> None:
    for verb, path, operation in operations(document):
        statuses = set(operation["responses"])
        assert {"401", "422", "429", "503"} <= statuses, (verb, path)
        assert ({"413", "415"} <= statuses) == ("requestBody" in operation), (verb, path)
        for status, response in operation["responses"].items():
            assert response["description"], (verb, path, status)
            if status >= "4":
                assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Failure"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_contracts_routes_are_there(document: dict[str, Any]) -> None:
    there = {(verb, path) for verb, path, _ in operations(document)}
    scores, runs = "/evaluations/trace-scores", "/evaluations/trace-runs"
    session_scores, of_sessions = "/evaluations/session-scores", "/evaluations/session-runs"
    analytics = "/evaluations/analytics/session-scores"
    wanted = {
        ("post", "/traces"), ("get", "/traces"), ("get", "/traces/analytics"), ("get", "/traces/users"),
        ("post", "/traces/batch/delete"), ("post", "/traces/batch/tags"), ("patch", "/traces/{trace_id}"),
        ("get", "/traces/{trace_id}"), ("delete", "/traces/{trace_id}"), ("post", "/traces/{trace_id}/spans"),
        ("patch", "/traces/{trace_id}/spans/{span_id}"), ("get", "/sessions"), ("get", "/sessions/analytics"),
        ("get", "/sessions/{session_id}"), ("delete", "/sessions/{session_id}"), ("get", "/evaluations/providers"),
        ("get", "/evaluations/trace-metrics"), ("get", f"{runs}/template"), ("post", runs), ("get", runs),
        ("post", f"{runs}/batch"), ("get", f"{runs}/{{run_id}}"), ("delete", f"{runs}/{{run_id}}"),
        ("post", f"{runs}/{{run_id}}/retry"), ("get", f"{runs}/{{run_id}}/scores"), ("post", scores), ("get", scores),
        ("get", f"{scores}/{{trace_id}}"), ("patch", f"{scores}/{{score_id}}"), ("delete", f"{scores}/{{score_id}}"),
        ("get", "/evaluations/analytics/trace-scores/summary"), ("get", "/evaluations/analytics/trace-scores/trend"),
        ("get", "/evaluations/analytics/trace-scores/distribution"), ("get", "/evaluations/session-metrics"),
    }  # fmt: skip
    wanted |= {
        ("get", of_sessions), ("post", of_sessions), ("post", f"{of_sessions}/batch"), ("get", f"{of_sessions}/{{run_id}}"),
        ("delete", f"{of_sessions}/{{run_id}}"), ("post", f"{of_sessions}/{{run_id}}/retry"),
        ("get", f"{of_sessions}/{{run_id}}/scores"), ("get", session_scores), ("get", f"{session_scores}/{{session_id}}"),
        ("delete", f"{session_scores}/{{score_id}}"), ("get", f"{analytics}/summary"), ("get", f"{analytics}/trend"),
        ("get", f"{analytics}/distribution"), ("get", f"{analytics}/history/{{session_id}}"),
        ("get", f"{analytics}/comparison"),
    }  # fmt: skip
    assert wanted <= there


async def test_every_example_of_a_body_runs(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    """In this order: the trace of the examples first, its deletion last. Its id stands where the examples have zeros."""
    ran, trace = 0, EXAMPLE
    wanted = [(v, p, o) for v, p, o in operations(document) if "requestBody" in o and not p.startswith("/admin")]
    order = ["/traces", "/traces/batch/delete"]
    wanted.sort(key=lambda w: (w[1] != order[0], w[1] == order[1]))
    score = ""
    for verb, path, operation in wanted:
        example = example_of(document, operation["requestBody"]["content"]["application/json"]["schema"])
        body = json.loads(json.dumps(example).replace(EXAMPLE, trace))
        if "{score_id}" in path:
            given = {"trace_id": trace, "name": "n", "value": "1"}
            score = score or (await client.post("/evaluations/trace-scores", json=given)).json()["id"]
        span = (await client.get(f"/traces/{trace}")).json().get("spans", [{"span_id": ""}])[0]["span_id"]
        url = path.replace("{trace_id}", trace).replace("{score_id}", score).replace("{span_id}", span)
        answer = await client.request(verb, url, json=body)
        assert 200 <= answer.status_code < 300, (verb, url, answer.text)
        ran, trace = ran + 1, answer.json()["trace_id"] if path == "/traces" else trace
    assert ran >= 9


async def test_whoever_pastes_the_examples_has_traces_of_his_own(
    http: httpx.AsyncClient, api_database: Database, document: dict[str, Any]
) -> None:
    """The first tenant who pasted them owned their id, and everybody else was told that there is no such trace."""
    body = document["components"]["schemas"]["TraceIn"]["examples"][0]
    made = set[str]()
    for organization in ("acme", "globex"):
        headers = {"X-API-Key": await new_key(api_database, organization), "X-Project-Name": "p"}
        answer = await http.post("/traces", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        made.add(answer.json()["trace_id"])
    assert len(made) == 2


async def test_the_documentation_is_served_without_a_key(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    parts = re.findall(r'(?:src|href)="(/[^"]+|http[^"]+)"', page.text)
    assert page.status_code == 200 and len(parts) == 2
    for part in parts:
        assert part.startswith("/docs/parts/"), "nothing is fetched from elsewhere"
        assert (await http.get(part)).status_code == 200, part
    assert (await http.get("/docs/parts/../../app.py")).status_code == 404


async def test_providers_say_why_one_cannot_be_used(client: httpx.AsyncClient, environ: dict[str, str]) -> None:
    environ |= {"OPENAI_API_KEY": "sk-test", "VERTEXAI_PROJECT": "p"}
    found = {p["key"]: p for p in (await client.get("/evaluations/providers")).json()}
    assert found["openai"]["available"] and "configured" in found["openai"]["message"]
    assert not found["anthropic"]["available"] and "ANTHROPIC_API_KEY" in found["anthropic"]["message"]
    assert "VERTEXAI_LOCATION and VERTEXAI_CREDENTIALS or GOOGLE" in found["vertex_ai"]["message"]
    assert found["heuristic"]["available"] and "sk-test" not in str(found)


async def test_a_template_is_a_run_to_fill_in(client: httpx.AsyncClient) -> None:
    answer = await client.get("/evaluations/trace-runs/template", params={"metric": "task_completion"})
    made = answer.json()
    assert (made["metric"]["name"], made["sampling_rate"], made["filters"]["tags"]) == ("task_completion", 1.0, None)
    assert [p["stage"] for p in made["metric"]["prompt_preview"]] == ["extract", "compare"]
    await new_trace(client)
    run = {"metrics": [made["metric"]["name"]], "filters": made["filters"], "model": made["model"]}
    assert (await client.post("/evaluations/trace-runs", json=run)).status_code == 202
    unknown = await client.get("/evaluations/trace-runs/template", params={"metric": "nonsense"})
    assert unknown.status_code == 400 and unknown.json()["errors"][0]["field"] == "metric"
