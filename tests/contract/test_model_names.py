"""A run's model is checked where the run is made, whichever way it is made."""

from typing import Any

import httpx
import pytest

from contract_helpers import new_trace

TRACES, SESSIONS = "/evaluations/trace-runs", "/evaluations/session-runs"
OF_TRACES: dict[str, Any] = {"metrics": ["coherence"]}
OF_SESSIONS: dict[str, Any] = {"metrics": ["agent_reliability"]}


@pytest.mark.parametrize(
    "name", ["gemini/x/../../../upload/v1beta/files?a=", "gemini/x#", "gemini/x y", "openai/responses/x"]
)
async def test_a_name_that_leads_elsewhere_at_the_vendor_starts_nothing(
    client: httpx.AsyncClient, environ: dict[str, str], name: str
) -> None:
    """With the operator's key, `:generateContent` of such a name is a call of whatever the tenant likes."""
    environ |= {"GEMINI_API_KEY": "k" * 20, "OPENAI_API_KEY": "k" * 20}
    trace = await new_trace(client, session_id="s")
    for path, body in {
        TRACES: OF_TRACES, f"{TRACES}/estimate": OF_TRACES, f"{TRACES}/batch": OF_TRACES | {"trace_ids": [trace]},
        SESSIONS: OF_SESSIONS, f"{SESSIONS}/estimate": OF_SESSIONS, f"{SESSIONS}/batch": OF_SESSIONS | {"session_ids": ["s"]},
    }.items():  # fmt: skip
        answer = await client.post(path, json=body | {"model": name})
        assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == "model", (path, answer.text)
        assert "no name of a model" in answer.json()["detail"]
    assert (await client.get(TRACES)).json()["total"] == (await client.get(SESSIONS)).json()["total"] == 0
