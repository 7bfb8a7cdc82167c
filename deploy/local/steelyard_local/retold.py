"""Turns an agent's steps, told one after the other, into the body of `POST /traces`: ids, times, tokens and cost."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

# Dollars for a million tokens in and out.
PRICES = {
    "gpt-5.4-mini": (0.4, 1.6),
    "gpt-5.4": (2.0, 8.0),
    "claude-haiku-4-5": (1.0, 5.0),
    "claude-sonnet-4-5": (3.0, 15.0),
}
Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """One span and, inside it, those that it called."""

    name: str
    kind: str
    seconds: float
    input: Any = None
    output: Any = None
    error: str | None = None
    more: Mapping[str, Any] | None = None
    inside: tuple["Step", ...] = ()


def openai(asked: str, said: str | None = None, calls: Sequence[Call] = (), **how: Any) -> Step:
    """A chat completion as OpenAI's client shapes it: tool calls carry their arguments as a string."""
    messages = [{"role": "system", "content": how.pop("system")}, *how.pop("before", ()), _user(asked)]
    tools = [{"type": "function", "function": tool} for tool in how.pop("tools", ())]
    made = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(calls, 1)
    ]
    reply: dict[str, Any] = {"role": "assistant", "content": said} | ({"tool_calls": made} if made else {})
    reason = "tool_calls" if made else "stop"
    output = {"choices": [{"index": 0, "message": reply, "finish_reason": reason}]}
    return _llm(how, {"messages": messages} | ({"tools": tools} if tools else {}), output, "gpt-5.4-mini")


def anthropic(asked: str, said: str | None = None, calls: Sequence[Call] = (), **how: Any) -> Step:
    """A message as Anthropic's client shapes it: blocks of text and tool_use."""
    sent = {"system": how.pop("system"), "messages": [*how.pop("before", ()), _user(asked)]}
    tools = [{"name": t["name"], "description": t["description"]} for t in how.pop("tools", ())]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": said}] if said is not None else []
    blocks += [{"type": "tool_use", "id": f"toolu_{n}", "name": c[0], "input": c[1]} for n, c in enumerate(calls, 1)]
    output = {"role": "assistant", "content": blocks, "stop_reason": "tool_use" if calls else "end_turn"}
    return _llm(how, sent | ({"tools": tools} if tools else {}), output, "claude-haiku-4-5")


def tool(name: str, arguments: Mapping[str, Any], result: Any = None, seconds: float = 0.4, error: str = "") -> Step:
    return Step(name, "TOOL", seconds, dict(arguments), result, error or None)


def retriever(query: str, found: Sequence[Mapping[str, Any]], seconds: float = 0.2) -> Step:
    embedding = Step("embed-query", "EMBEDDING", 0.06, query, {"dimensions": 1536})
    return Step("search-library", "RETRIEVER", seconds, {"query": query, "top_k": 4}, list(found), inside=(embedding,))


def described(name: str, description: str, **properties: str) -> dict[str, Any]:
    """A tool as a model is offered it."""
    schema = {"type": "object", "properties": {n: {"type": t} for n, t in properties.items()}}
    return {"name": name, "description": description, "parameters": schema | {"required": list(properties)}}


def payload(
    agent: str, started: datetime, asked: Any, answered: Any, steps: Sequence[Step], **about: Any
) -> dict[str, Any]:
    """The root span is the agent itself; the steps follow one another inside it."""
    error = about.pop("error", None)
    root = Step(agent, "AGENT", 0.05, asked, answered, error, inside=tuple(_as_conversation(steps)))
    spans: list[dict[str, Any]] = []
    ended = _lay(root, started, None, spans)
    return {
        "trace_id": str(uuid4()),
        "name": agent,
        "status": "ERROR" if error else "COMPLETED",
        "input": asked,
        "output": answered,
        "started_at": started.isoformat(),
        "ended_at": ended.isoformat(),
        "spans": spans,
    } | about


def _llm(how: dict[str, Any], sent: Any, got: Any, model: str) -> Step:
    more = {"model": how.pop("model", model), "model_parameters": {"temperature": how.pop("temperature", 0.2)}}
    return Step(how.pop("name", "chat"), "LLM", how.pop("seconds", 1.1), sent, got, how.pop("error", None), more)


def _as_conversation(steps: Sequence[Step]) -> Iterator[Step]:
    """Each call of a model sees what was said and found before it, as it does in life."""
    history: list[dict[str, Any]] = []
    for step in steps:
        if step.kind == "LLM":
            yield _measured(replace(step, input=step.input | {"messages": [*step.input["messages"], *history]}))
            history.append(step.output["choices"][0]["message"] if "choices" in step.output else _spoken(step.output))
        else:
            yield step
            if step.kind == "TOOL" and history:
                history.append(_returned(history, step))


def _spoken(output: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": output["role"], "content": output["content"]}


def _returned(history: Sequence[Mapping[str, Any]], step: Step) -> dict[str, Any]:
    """A tool's result in the words of the vendor whose model called it, under the id of its call."""
    asked = max(n for n, message in enumerate(history) if message["role"] == "assistant")
    position, text = len(history) - asked - 1, json.dumps(step.output) if step.error is None else step.error
    if calls := history[asked].get("tool_calls"):
        return {"role": "tool", "tool_call_id": calls[position]["id"], "content": text}
    uses = [block for block in history[asked]["content"] if block["type"] == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": uses[position]["id"], "content": text}
    return {"role": "user", "content": [result | ({"is_error": True} if step.error else {})]}


def _measured(step: Step) -> Step:
    """Tokens by length, money by tokens."""
    more = dict(step.more or {})
    tokens_in, tokens_out = (max(8, len(json.dumps(value)) // 4) for value in (step.input, step.output))
    price_in, price_out = PRICES[more["model"]]
    costs = {"input": tokens_in * price_in / 1e6, "output": tokens_out * price_out / 1e6}
    more["token_usage"] = {"input": tokens_in, "output": tokens_out, "total": tokens_in + tokens_out}
    more["cost"] = {name: round(dollars, 8) for name, dollars in (costs | {"total": sum(costs.values())}).items()}
    return replace(step, more=more)


def _user(asked: str) -> dict[str, str]:
    return {"role": "user", "content": asked}


def _lay(step: Step, at: datetime, parent: str | None, spans: list[dict[str, Any]]) -> datetime:
    """Adds the span and what is inside it, and says when it ended."""
    span: dict[str, Any] = {"span_id": str(uuid4()), "parent_span_id": parent, "name": step.name, "kind": step.kind}
    spans.append(span)
    cursor = at + timedelta(seconds=0.02)
    for inner in step.inside:
        cursor = _lay(inner, cursor, span["span_id"], spans)
    ended = cursor + timedelta(seconds=step.seconds)
    span |= {"status": "ERROR" if step.error else "OK", "input": step.input, "output": step.output}
    span |= {"started_at": at.isoformat(), "ended_at": ended.isoformat()} | dict(step.more or {})
    if step.error:
        span["error"] = step.error
    if step.kind == "LLM" and not step.error:
        span["completion_start_time"] = (at + timedelta(seconds=step.seconds * 0.3)).isoformat()
    return ended
