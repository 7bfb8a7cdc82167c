"""Every list that a request may carry has an end, and the API's description says which."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from contract_helpers import new_trace

# What belongs to users and is stored as it is; the number of values in a body bounds it.
FREE = {"input", "output", "metadata", "token_usage", "model_parameters"}
BOUNDED = {"maxLength", "format", "enum"}
TIME = "2026-03-01T10:00:00Z"


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/openapi.json")).json())


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def endless(document: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    """The lists and maps in it without a most, and the texts in them without one."""
    schema = resolved(document, schema)
    for either in schema.get("anyOf", ()):
        yield from endless(document, either, place)
    if schema.get("type") == "array":
        if "maxItems" not in schema:
            yield f"{place}: a list without an end"
        yield from endless(document, schema["items"], f"{place}[]")
    if isinstance(entries := schema.get("additionalProperties"), dict) and place.rsplit(".", 1)[-1] not in FREE:
        if "maxProperties" not in schema:
            yield f"{place}: a map without an end"
        yield from endless(document, entries, f"{place}{{}}")
    if schema.get("type") == "string" and place.endswith("[]") and not BOUNDED & schema.keys():
        yield f"{place}: texts without an end"
    for name, field in schema.get("properties", {}).items():
        if name not in FREE:
            yield from endless(document, field, f"{place}.{name}")


async def test_no_list_of_a_request_is_without_an_end(document: dict[str, Any]) -> None:
    found, looked_at = list[str](), 0
    for path, methods in document["paths"].items():
        for verb, operation in methods.items():
            schemas = [(p["name"], p["schema"]) for p in operation.get("parameters", ()) if p["in"] == "query"]
            if "requestBody" in operation:
                schemas.append(("body", operation["requestBody"]["content"]["application/json"]["schema"]))
            for name, schema in schemas:
                looked_at += 1
                found += endless(document, schema, f"{verb} {path} {name}")
    assert looked_at > 100 and found == []


RUNS = ("/evaluations/trace-runs", "/evaluations/trace-runs/estimate")
OF_SESSIONS = ("/evaluations/session-runs", "/evaluations/session-runs/estimate")
MANY = {f"s{n}": 1.0 for n in range(101)}
LONG = [f"t{n}" for n in range(201)]
TOO_MUCH = [
    *((path, {"metrics": ["coherence"], "filters": {"tags": LONG}}, 400, "filters.tags") for path in RUNS),
    *((path, {"metrics": ["agent_reliability"], "filters": {"tags": LONG}}, 400, "filters.tags") for path in OF_SESSIONS),
    (RUNS[0], {"metrics": ["coherence"], "filters": {"tags": ["x" * 256]}}, 400, "filters.tags.0"),
    (RUNS[0], {"metrics": ["coherence"], "filters": {"session_id": "x" * 256}}, 400, "filters.session_id"),
    (RUNS[0], {"metrics": ["coherence"], "filters": {"name": "x" * 513}}, 400, "filters.name"),
    (OF_SESSIONS[0], {"metrics": ["agent_reliability"], "filters": {"user_id": "x" * 256}}, 400, "filters.user_id"),
    (RUNS[0], {"metrics": ["coherence"] * 101}, 422, "metrics"),
    (RUNS[0], {"metrics": ["x" * 256]}, 422, "metrics.0"),
    (OF_SESSIONS[0], {"metrics": ["agent_reliability"], "signal_weights": MANY}, 422, "signal_weights"),
    ("/traces", {"name": "t", "started_at": TIME, "tags": LONG}, 422, "tags"),
    ("/traces", {"name": "t", "started_at": TIME, "spans": [{"name": "s", "started_at": TIME, "cost": MANY}]},
     422, "spans.0.cost"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "field"), TOO_MUCH)
async def test_what_is_too_long_is_refused_and_named(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    """32,765 tags passed once, and the expansion of their run failed for ever on them."""
    await new_trace(client, session_id="s")
    answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, field), answer.text


@pytest.mark.parametrize("path", ["/traces", "/sessions"])
async def test_a_query_with_too_many_tags_is_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params=[("tags", tag) for tag in LONG])
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "tags")
