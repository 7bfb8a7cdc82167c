"""The published SDK as its users write it: what it sends arrives exactly, and what it reads it understands."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import openai
import pandaprobe
import pytest
import uvicorn
from pandaprobe.api import AuthenticationError, NotFoundError, PlatformClient
from pandaprobe.reflect import Reflect, ReflectConfig
from pandaprobe.wrappers import wrap_openai

from addresses import Urls
from eventually import eventually
from spine import Calls, spine
from steelyard.kafka import Cluster
from steelyard.metrics.judging import Score
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database
from steelyard_api.app import api
from stub_model import stub_model

PROJECT = "an SDK's project"


@pytest.fixture
async def address(urls: Urls) -> AsyncIterator[str]:
    """A real server with a loop of its own: the SDK's calls block the loop of the test."""
    settings = Settings.model_validate({"api_database_url": urls.api, "judge_model": None, "judge_base_url": None})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = api(settings, Database(urls.api))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            await eventually(lambda: server.started, "the API listens")
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await asyncio.to_thread(thread.join)


@pytest.fixture
async def key(api_database: Database) -> str:
    async with api_database.begin() as tx:
        made, _ = await access.make_key(tx, "acme", "tests")
    return made


@pytest.fixture
def sdk(address: str, key: str, caplog: pytest.LogCaptureFixture) -> Iterator[pandaprobe.Client]:
    """The global client, which decorators and wrappers use. The SDK swallows its failures and logs them: none is fine."""
    caplog.set_level(logging.WARNING, "pandaprobe")
    made = pandaprobe.init(
        api_key=key,
        project_name=PROJECT,
        endpoint=address,
        environment="staging",
        release="2.1.0",
        enabled=True,
        flush_interval=0.1,
    )
    failures: list[Exception] = []
    made.on_error(failures.append)
    yield made
    made.shutdown()
    assert failures == [] and [r.getMessage() for r in caplog.records if r.name == "pandaprobe"] == []


@pytest.fixture
async def http(address: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-API-Key": key, "X-Project-Name": PROJECT}
    async with httpx.AsyncClient(base_url=address, headers=headers) as client:
        yield client


def user(said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}]}


def assistant(said: str) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": said}]}


async def sent(client: pandaprobe.Client) -> None:
    await asyncio.to_thread(client.flush)


async def read(http: httpx.AsyncClient, trace_id: str) -> dict[str, Any]:
    answer = await http.get(f"/traces/{trace_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def named(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    (found,) = (await http.get("/traces", params={"name": name})).json()["items"]
    return await read(http, found["trace_id"])


async def scores_of(http: httpx.AsyncClient, trace_id: str) -> dict[str, dict[str, Any]]:
    answer = await http.get(f"/evaluations/trace-scores/{trace_id}")
    assert answer.status_code == 200, answer.text
    return {s["name"]: s for s in answer.json()}


def as_read(said: Any) -> Any:
    """What was sent, in the words of what is answered: times end in Z."""
    if isinstance(said, str) and said.endswith("+00:00"):
        return said.removesuffix("+00:00") + "Z"
    if isinstance(said, dict):
        return {k: as_read(v) for k, v in said.items()}
    return [as_read(v) for v in said] if isinstance(said, list) else said


def assert_holds(whole: dict[str, Any], payload: dict[str, Any]) -> None:
    """Every field that was sent, unchanged; spans in the order they started."""
    spans = {s["span_id"]: s for s in whole["spans"]}
    expected = as_read(payload)
    for span in expected.pop("spans", []):
        assert {k: spans[span["span_id"]][k] for k in span} == span
    assert {k: whole[k] for k in expected} == expected
    assert len(spans) == len(payload.get("spans", []))


async def test_a_trace_arrives_exactly_as_it_was_sent(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    payloads: list[dict[str, Any]] = []
    began = datetime.now(UTC)
    with sdk.capture_traces(on_submit=payloads.append), trip(sdk) as trace:
        with trace.span("plan", kind="AGENT", metadata={"depth": 1}) as plan:
            with trace.span("ask", kind="LLM", model="gpt-x") as llm:
                llm.set_input(user("Lyon?"))
                llm.set_completion_start_time(datetime.now(UTC))
                llm.set_model_parameters({"temperature": 0.2, "stop": ["\n"]})
                llm.set_token_usage(prompt_tokens=120, completion_tokens=30, total_tokens=150, reasoning_tokens=7)
                llm.set_cost(total=0.0125, prompt=0.01, completion=0.0025)
                llm.set_output(assistant("08:12"))
            with pytest.raises(LookupError), trace.span("timetable", kind="TOOL") as tool:
                tool.set_input({"to": "Lyon", "when": [8, None, "é\u0000"]})
                raise LookupError("no such station")
        trace.set_metadata({"more": {"nested": [True, 1.5]}})
        trace.set_output(assistant("The 08:12."))
    await sent(sdk)
    whole, (payload,) = await read(http, trace.trace_id), payloads
    stored = payload["spans"][1]["input"]["when"]
    stored[2] = stored[2].replace("\u0000", "\ufffd")  # what a database cannot hold
    assert_holds(whole, payload)
    spans = {s["name"]: s for s in whole["spans"]}
    assert [s["name"] for s in whole["spans"]] == ["plan", "ask", "timetable"]
    assert spans["ask"]["parent_span_id"] == spans["timetable"]["parent_span_id"] == plan.span_id
    assert spans["plan"]["parent_span_id"] is None
    assert (spans["timetable"]["status"], spans["timetable"]["error"]) == ("ERROR", "no such station")
    assert (spans["ask"]["status"], spans["ask"]["model"]) == ("OK", "gpt-x")
    assert spans["ask"]["time_to_first_token_ms"] >= 0 <= spans["ask"]["latency_ms"]
    assert began <= datetime.fromisoformat(whole["started_at"]) <= datetime.fromisoformat(whole["ended_at"])
    (listed,) = (await http.get("/traces", params={"session_id": "trip/1", "tags": "b"})).json()["items"]
    assert (listed["total_tokens"], listed["total_cost"], listed["span_count"]) == (150, 0.0125, 3)
    assert (listed["environment"], listed["release"], listed["user_id"]) == ("staging", "2.1.0", "ada@example")


def trip(sdk: pandaprobe.Client) -> Any:
    more: dict[str, Any] = {
        "session_id": "trip/1",
        "user_id": "ada@example",
        "tags": ["a", "b"],
        "metadata": {"plan": "gold"},
    }
    return sdk.trace("find-train", input=user("Which train gets me to Lyon?"), **more)


async def test_decorated_functions_are_traces_and_spans(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    @pandaprobe.span(name="search", kind="RETRIEVER")  # type: ignore[untyped-decorator]
    def search(query: str, most: int = 3) -> list[str]:
        return [query] * most

    @pandaprobe.span(kind="CHAIN")  # type: ignore[untyped-decorator]
    async def chain(query: str) -> str:
        return ", ".join(search(query))

    @pandaprobe.trace(name="decorated", tags=["async"])  # type: ignore[untyped-decorator]
    async def agent(messages: list[dict[str, str]]) -> dict[str, Any]:
        return assistant(await chain(messages[-1]["content"]))

    with pandaprobe.session("talk"), pandaprobe.user("bob"):
        await agent([{"role": "system", "content": "be brief"}, {"role": "user", "content": "tea"}])
    await sent(sdk)
    whole = await named(http, "decorated")
    assert (whole["session_id"], whole["user_id"], whole["tags"]) == ("talk", "bob", ["async"])
    assert (whole["input"], whole["output"]) == (user("tea"), assistant("tea, tea, tea"))
    outer, inner = whole["spans"]
    assert (outer["name"], outer["kind"], inner["name"], inner["kind"]) == ("chain", "CHAIN", "search", "RETRIEVER")
    assert inner["parent_span_id"] == outer["span_id"]
    assert (inner["input"], inner["output"]) == ({"query": "tea", "most": 3}, ["tea", "tea", "tea"])
    session = (await http.get("/sessions/talk")).json()
    assert (session["trace_count"], session["user_id"], session["has_error"]) == (1, "bob", False)


async def test_a_function_that_fails_is_a_trace_with_an_error(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    @pandaprobe.span(kind="TOOL")  # type: ignore[untyped-decorator]
    def pay(amount: float) -> None:
        raise PermissionError(f"{amount} is too much")

    @pandaprobe.trace(session_id="shop")  # type: ignore[untyped-decorator]
    def buy() -> None:
        pay(9.5)

    with pytest.raises(PermissionError):
        buy()
    await sent(sdk)
    whole = await named(http, "buy")
    assert (whole["status"], whole["session_id"], whole["output"]) == ("ERROR", "shop", None)
    (span,) = whole["spans"]
    assert (span["status"], span["error"], span["output"]) == ("ERROR", "9.5 is too much", None)
    assert (await http.get("/sessions", params={"has_error": "true"})).json()["total"] == 1


async def test_a_wrapped_models_calls_are_llm_spans(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    async with stub_model() as stub:
        stub.tell(say="The 08:12.", times=1)
        model = wrap_openai(openai.OpenAI(base_url=stub.base_url, api_key="none", max_retries=0))
        messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Which train?"}]

        def ask() -> None:
            model.chat.completions.create(model="gpt-x", messages=messages, temperature=0.5)

        with pandaprobe.session("wrapped"):
            await asyncio.to_thread(ask)
            stub.tell(status=400, message="no such model")
            with pytest.raises(openai.BadRequestError):
                await asyncio.to_thread(ask)
    await sent(sdk)
    listed = (await http.get("/traces", params={"session_id": "wrapped", "sort_order": "asc"})).json()["items"]
    good, bad = [await read(http, t["trace_id"]) for t in listed]
    assert (good["name"], good["status"], bad["status"]) == ("openai-chat", "COMPLETED", "ERROR")
    assert good["input"] == user("Which train?")
    (span,) = good["spans"]
    assert (span["kind"], span["model"], span["model_parameters"]) == ("LLM", "gpt-x", {"temperature": 0.5})
    assert span["input"] == {"messages": messages} and span["output"] == good["output"]
    assert span["output"]["messages"][0]["content"] == "The 08:12."
    assert span["token_usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert listed[0]["total_tokens"] == 5
    (failed,) = bad["spans"]
    assert failed["status"] == "ERROR" and "no such model" in failed["error"] and failed["token_usage"] is None


async def test_a_score_right_behind_its_trace_and_one_before_it_are_both_kept(
    sdk: pandaprobe.Client, http: httpx.AsyncClient
) -> None:
    """Inside of the `with` the trace is not sent yet: the score overtakes it."""
    with sdk.trace("scored") as trace:
        sdk.score(trace.trace_id, "early", "true", data_type="BOOLEAN")
        await sent(sdk)
        parked = (await http.get("/evaluations/trace-scores", params={"trace_id": trace.trace_id})).json()["items"]
        assert [(s["status"], s["environment"]) for s in parked] == [("PENDING", None)]
    sdk.score(UUID(trace.trace_id), "quality", "0.85", reason="the train exists", metadata={"by": "a rule"})
    pandaprobe.score(trace.trace_id, "tone", "friendly", data_type="CATEGORICAL")
    await sent(sdk)
    found = await scores_of(http, trace.trace_id)
    assert {(n, s["value"], s["data_type"]) for n, s in found.items()} == {
        ("early", "true", "BOOLEAN"),
        ("quality", "0.85", "NUMERIC"),
        ("tone", "friendly", "CATEGORICAL"),
    }
    assert {(s["status"], s["source"], s["environment"]) for s in found.values()} == {
        ("SUCCESS", "PROGRAMMATIC", "staging")
    }
    assert (found["quality"]["reason"], found["quality"]["metadata"]) == ("the train exists", {"by": "a rule"})
    (summed, *_) = (await http.get("/evaluations/analytics/trace-scores/summary")).json()
    assert (summed["metric_name"], summed["success_count"], summed["avg_score"]) == ("early", 1, 1.0)


async def test_updates_change_what_they_name_and_nothing_else(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    with sdk.trace("long", input=user("go"), metadata={"kept": 1}, tags=["t"]) as trace:
        trace.set_status("RUNNING")
        with trace.span("first") as first:
            first.set_output("half")
    late = {"span_id": str(uuid4()), "parent_span_id": first.span_id, "name": "late", "kind": "TOOL"}
    transport = sdk._transport
    transport.enqueue_spans(trace.trace_id, [late | {"started_at": datetime.now(UTC).isoformat()}])
    transport.enqueue_update_span(
        trace.trace_id, first.span_id, {"output": "whole", "error": "slow", "status": "ERROR"}
    )
    transport.enqueue_update_trace(
        trace.trace_id, {"status": "COMPLETED", "output": assistant("done"), "metadata": {"more": 2}}
    )
    await sent(sdk)
    whole = await read(http, trace.trace_id)
    assert (whole["status"], whole["output"], whole["input"]) == ("COMPLETED", assistant("done"), user("go"))
    assert (whole["metadata"], whole["tags"], whole["environment"]) == ({"kept": 1, "more": 2}, ["t"], "staging")
    one, two = whole["spans"]
    assert (one["output"], one["error"], one["status"]) == ("whole", "slow", "ERROR")
    assert (two["span_id"], two["parent_span_id"], two["kind"]) == (late["span_id"], first.span_id, "TOOL")


async def test_shutdown_loses_nothing_that_was_not_flushed(
    sdk: pandaprobe.Client, http: httpx.AsyncClient, address: str, key: str
) -> None:
    busy = pandaprobe.Client(
        api_key=key, project_name=PROJECT, endpoint=address, batch_size=1000, flush_interval=600, enabled=True
    )
    for n in range(40):
        with busy.trace(f"bulk {n}", session_id="bulk") as trace:
            pass
        busy.score(trace.trace_id, "n", "1")
    await asyncio.to_thread(busy.shutdown)
    assert (await http.get("/traces", params={"session_id": "bulk"})).json()["total"] == 40
    assert (await http.get("/evaluations/trace-scores", params={"name": "n", "status": "SUCCESS"})).json()[
        "total"
    ] == 40


async def test_four_threads_of_one_program_lose_nothing(sdk: pandaprobe.Client, http: httpx.AsyncClient) -> None:
    def work(n: int) -> None:
        for k in range(10):
            with pandaprobe.session(f"thread {n}"), sdk.trace("busy") as trace, trace.span(str(k)):
                pandaprobe.score(trace.trace_id, "k", str(k / 10))

    await asyncio.gather(*(asyncio.to_thread(work, n) for n in range(4)))
    await sent(sdk)
    sessions = (await http.get("/sessions")).json()["items"]
    assert {(s["session_id"], s["trace_count"], s["total_span_count"]) for s in sessions} == {
        (f"thread {n}", 10, 10) for n in range(4)
    }
    found = (await http.get("/evaluations/trace-scores", params={"limit": 200})).json()["items"]
    assert len(found) == 40 and {s["status"] for s in found} == {"SUCCESS"}


async def test_the_sdk_reads_traces(sdk: pandaprobe.Client) -> None:
    for n in range(3):
        with sdk.trace(f"trace {n}", session_id="s", tags=["x"]) as trace, trace.span("step", kind="TOOL"):
            pass
    async with PlatformClient(sdk) as platform:
        whole = await platform.traces.wait_visible(trace.trace_id, poll_interval=0.05)
        assert (whole.name, whole.status, whole.tags, whole.spans[0].name) == ("trace 2", "COMPLETED", ["x"], "step")
        page = await platform.traces.list(session_id="s", status="COMPLETED", limit=2)
        assert (page.total, [t.name for t in page.items]) == (3, ["trace 2", "trace 1"])
        assert [t.name async for t in platform.traces.iterate(session_id="s")] == ["trace 2", "trace 1", "trace 0"]
        with pytest.raises(NotFoundError) as lost:
            await platform.traces.get(uuid4())
        assert lost.value.request_id


async def test_the_sdk_evaluates_its_traces_and_reads_the_scores(
    sdk: pandaprobe.Client, topics: Cluster, urls: Urls
) -> None:
    traces = [sdk.trace(f"trace {n}") for n in range(2)]
    for trace in traces:
        with trace:
            pass
    await sent(sdk)
    ids: list[Any] = [t.trace_id for t in traces]
    async with spine(topics, urls) as system, PlatformClient(sdk) as platform:
        known = {m.name for m in await platform.evaluations.metrics()}
        asked = sorted(known)[:2]
        run = await platform.evaluations.create(ids, asked, name="by the SDK")
        assert (run.total_targets, run.target_type, run.metric_names) == (2, "TRACE", asked)
        system.start_resolver()
        system.start_aggregator()
        system.start_judge(Calls())
        done = await platform.evaluations.wait(run.id, trace_ids=ids, metrics=asked, timeout=60, poll_interval=0.1)
        assert (done.run.status, done.run.evaluated_count, done.run.failed_count) == ("COMPLETED", 2, 0)
        assert {(str(s.trace_id), s.name, s.numeric_value, s.reason) for s in done.scores} == {
            (i, m, 0.75, "because") for i in ids for m in asked
        }
        assert {s.eval_run_id for s in done.scores} == {run.id}


async def test_the_sdks_watch_over_failures_hears_of_a_bad_score(
    sdk: pandaprobe.Client, topics: Cluster, urls: Urls, tmp_path: Path
) -> None:
    """Its defaults ask for task_completion and coherence first; the metrics it would diagnose with are its own."""
    with sdk.trace("task") as trace:
        pass
    watch = ReflectConfig(workspace=tmp_path, poll_interval=0.1, diagnostic_metrics=("confidence",))
    async with spine(topics, urls) as system, Reflect(sdk, config=watch) as reflect:
        system.start_resolver()
        system.start_aggregator()
        system.start_judge(Calls(answers={"coherence": [Score(0.1, "it contradicts itself")]}))
        task = reflect.submit_traces([trace.trace_id], execution_id="one", session_id="s")
        async with asyncio.timeout(60):
            outcome = await task
    assert (outcome.status, outcome.reason, len(outcome.run_ids)) == ("evaluated", "", 2)
    assert outcome.scores == {"task_completion": 0.75, "coherence": 0.1}
    assert outcome.notice is not None
    assert outcome.notice.signatures == ["coherence:below_threshold"]
    assert outcome.notice.reasons["coherence"] == "it contradicts itself"


async def test_an_unknown_key_is_said_to_be_one(address: str) -> None:
    stranger = pandaprobe.Client(api_key="sk_sy_guessed", project_name=PROJECT, endpoint=address, enabled=True)
    async with PlatformClient(stranger) as platform:
        with pytest.raises(AuthenticationError):
            await platform.traces.list()
    stranger.shutdown()
