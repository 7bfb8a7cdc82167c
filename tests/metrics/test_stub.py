"""The model that the other tests talk to: told over HTTP what `tests/flow` and people on a shell tell it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from stub_model import MODES, Stub, stub_model

SYSTEM = {"role": "system", "content": 'Its field "nonce" must be exactly "abc123".'}
ASK = {"role": "user", "content": 'Grade. JSON: {"nonce": "…", "score": 0 | 1, "reason": "…", "evidence": [1]}'}


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_model() as stub:
        yield stub


@pytest.fixture
async def client(stub: Stub) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stub.base_url, timeout=5, trust_env=False) as client:
        yield client


async def said(client: httpx.AsyncClient, **more: Any) -> tuple[str, str]:
    request = {"model": "stub", "messages": [SYSTEM, ASK], **more}
    choice = (await client.post("/chat/completions", json=request)).json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


async def test_without_a_schema_it_answers_in_the_shape_that_the_prompt_names(client: httpx.AsyncClient) -> None:
    answer = orjson.loads((await said(client))[0])
    assert list(answer) == ["nonce", "score", "reason", "evidence"] and answer["nonce"] == "abc123"
    assert answer["score"] in (0, 0.25, 0.5, 0.75, 1) and orjson.loads((await said(client))[0]) == answer


@pytest.mark.parametrize(
    ("mode", "holds"),
    [
        ("nonsense", "rather well"),
        ("wrong_nonce", '"nonce":"000000"'),
        ("two_verdicts", '}\n{"nonce": "abc123"'),
        ("out_of_range", '"score": 7'),
    ],
)
async def test_it_misbehaves_as_it_is_told_and_stops_when_it_is_told(
    client: httpx.AsyncClient, mode: str, holds: str
) -> None:
    await client.post("/control", json={"mode": mode})
    assert holds in (await said(client))[0]
    await client.post("/control", json={"mode": "normal"})
    assert holds not in (await said(client))[0]


async def test_a_question_is_counted_by_its_mark_which_a_signed_answer_holds(client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"signed": True})
    for _ in range(2):
        text = (await said(client))[0]
    await said(client, messages=[SYSTEM, {"role": "user", "content": "Another one."}])
    counted = (await client.get("/stats")).json()["by_question"]
    (mark,) = (m for m in counted if m in text)
    assert counted.pop(mark) == 2 and list(counted.values()) == [1]


async def test_a_truncated_answer_says_so(client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"mode": "truncated"})
    assert (await said(client))[1] == "length"


async def test_a_refused_schema_is_a_400_and_plain_json_is_not(client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"mode": "refuse_schema"})
    for kind, status in (("json_schema", 400), ("json_object", 200)):
        request = {"messages": [SYSTEM, ASK], "response_format": {"type": kind}}
        assert (await client.post("/chat/completions", json=request)).status_code == status


@pytest.mark.parametrize("mode", ["hang", "trickle"])
async def test_an_answer_that_never_comes_does_not_come(client: httpx.AsyncClient, mode: str) -> None:
    await client.post("/control", json={"mode": mode})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await said(client)


async def test_a_failure_is_counted_down_and_names_its_time(client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"status": 429, "retry_after": 3, "times": 1})
    request = {"messages": [SYSTEM, ASK]}
    limited, fine = [await client.post("/chat/completions", json=request) for _ in range(2)]
    assert (limited.status_code, limited.headers["retry-after"], fine.status_code) == (429, "3", 200)


@pytest.mark.parametrize("told", [{"mode": "nonesuch"}, {"no_such_field": 1}, {"delay": "long"}, []])
async def test_what_it_does_not_understand_it_refuses(client: httpx.AsyncClient, told: Any) -> None:
    assert (await client.post("/control", json=told)).status_code == 422
    assert "normal" in MODES and (await said(client))[1] == "stop"


async def test_hundreds_at_once_are_carried_and_counted(stub: Stub, client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"delay": 0.5})
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=stub.base_url, limits=limits, timeout=30, trust_env=False) as many:
        await asyncio.gather(*(said(many) for _ in range(200)))
    counted = (await client.get("/stats")).json()
    assert (counted["calls"], counted["in_flight"]) == (200, 0) and counted["max_in_flight"] > 50


async def test_as_a_process_it_says_where_it_listens() -> None:
    command = [sys.executable, "-m", "stub_model", "--port", "0"]
    stub = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    assert stub.stdout is not None
    address = (await stub.stdout.readline()).decode().strip()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{address}/stats")).json()["calls"] == 0
    stub.terminate()
    await stub.wait()


ANTHROPIC = {"model": "m", "system": [{"type": "text", "text": SYSTEM["content"]}], "messages": [ASK], "max_tokens": 9}
GEMINI = {
    "system_instruction": {"parts": [{"text": SYSTEM["content"]}]},
    "contents": [{"role": "user", "parts": [{"text": ASK["content"]}]}],
}


async def test_other_vendors_wires_are_spoken_too(client: httpx.AsyncClient) -> None:
    asked = (await client.post("/messages", json=ANTHROPIC)).json()
    assert orjson.loads(asked["content"][0]["text"])["nonce"] == "abc123" and asked["stop_reason"] == "end_turn"
    asked = (await client.post("/models/m:generateContent", json=GEMINI)).json()["candidates"][0]
    assert orjson.loads(asked["content"]["parts"][0]["text"])["nonce"] == "abc123" and asked["finishReason"] == "STOP"


async def test_a_refusal_says_so_on_every_wire(client: httpx.AsyncClient) -> None:
    await client.post("/control", json={"mode": "refusal"})
    assert (await said(client))[1] == "content_filter"
    assert (await client.post("/messages", json=ANTHROPIC)).json()["stop_reason"] == "refusal"
    asked = (await client.post("/models/m:generateContent", json=GEMINI)).json()
    assert asked["candidates"][0]["finishReason"] == "SAFETY"


async def test_errors_and_answers_quote_the_headers_where_they_are_told_to(client: httpx.AsyncClient) -> None:
    request = {"messages": [SYSTEM, ASK]}
    for told in ({"status": 401, "message": "you sent HEADERS"}, {"say": "you sent HEADERS"}):
        await client.post("/control", json=told)
        answer = await client.post("/chat/completions", json=request, headers={"Authorization": "Bearer Mine"})
        assert "Bearer Mine" in answer.text


async def test_more_at_once_than_it_takes_are_limited(stub: Stub, client: httpx.AsyncClient) -> None:
    stub.tell(at_most=3, delay=0.3)
    request = {"messages": [SYSTEM, ASK]}
    answers = await asyncio.gather(*(client.post("/chat/completions", json=request) for _ in range(8)))
    assert sorted(a.status_code for a in answers) == [200] * 3 + [429] * 5 and stub.limited == 5
