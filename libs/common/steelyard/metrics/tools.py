"""Which tools an agent called, and which it could have called: read out of the spans, never asked of a model."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import UUID

import orjson

from steelyard.metrics.plain import dumped
from steelyard.traces import Span, SpanKind, SpanStatus, Trace

# Where the clients and tracers of this world put what a model is offered.
_DECLARED = (
    "tools",
    "functions",
    "available_tools",
    "tool_definitions",
    "function_declarations",
    "functiondeclarations",
)
_SCHEMAS = ("parameters", "input_schema", "inputSchema", "args_schema", "parametersJsonSchema", "schema")
_TALK = ("messages", "history", "contents", "prompts")
_LISTS = ("choices", "messages", "generations", "output", "content", "tool_calls", "candidates", "parts")
_ANSWERS = ("assistant", "ai", "model", "aimessage", "aimessagechunk")
DEEPEST = 12


@dataclass(frozen=True)
class Call:
    """`span` is the number of the span that shows it; `failed` and `result` are known where the tool's run is."""

    span: int
    name: str
    parameters: Any = None
    ran: bool = False
    failed: bool = False
    error: str = ""
    result: Any = None

    @cached_property
    def key(self) -> tuple[str, str]:
        return self.name, dumped(self.parameters)

    def called(self) -> str:
        return f"{self.name}({self.key[1]}){' and fails' if self.failed else ''}"


@dataclass(frozen=True)
class Tool:
    span: int
    name: str
    description: str = ""
    schema: Mapping[str, Any] | None = None


def calls(trace: Trace) -> tuple[Call, ...]:
    """Every TOOL span; and what a model asked for and no TOOL span shows, since many traces record the asking alone."""
    found: list[Call] = []
    waiting = _Waiting()
    strangers: list[Call] = []
    wrappers = _wrappers(trace)
    for n, span in enumerate(trace.spans, 1):
        if span.kind == SpanKind.LLM and span.span_id not in wrappers:
            asked = [Call(n, name, given) for name, given in asked_for(span.output)]
            waiting.add(dict(enumerate(asked, len(found))))
            found += asked
        elif span.kind == SpanKind.TOOL and span.span_id not in wrappers:
            ran = _ran(n, span)
            place = waiting.asking(ran)
            if place is None:
                strangers.append(ran)
                found.append(ran)
            else:
                found[place] = replace(ran, parameters=_fuller(ran, waiting.pop(place)))
    # A tool may run under another name than the model called it by: such runs take the place of calls without a run.
    doubled = {
        place for (place, call), ran in zip(waiting.calls.items(), strangers, strict=False) if call.span < ran.span
    }
    return tuple(sorted((c for place, c in enumerate(found) if place not in doubled), key=lambda c: c.span))


def offered(trace: Trace) -> tuple[Tool, ...]:
    """The tools that LLM spans declare, each as it was first declared."""
    known: dict[str, Tool] = {}
    for n, span in enumerate(trace.spans, 1):
        if span.kind == SpanKind.LLM:
            for place in (span.input, span.model_parameters, span.metadata):
                for declared in _declarations(place):
                    for tool in _tools(n, declared):
                        known.setdefault(tool.name, tool)
    return tuple(known.values())


def asked_for(value: Any) -> list[tuple[str, Any]]:
    """Calls in a model's answer: OpenAI (chat, responses, legacy), Anthropic, Gemini, Bedrock and LangChain shapes.
    One call that a message shows in two shapes has one id."""
    found: dict[Any, tuple[str, Any]] = {}
    for n, (ident, name, given) in enumerate(_calls(_answer(parsed(value)), 0)):
        found.setdefault((ident or n, name), (name, given))
    return list(found.values())


def _calls(value: Any, depth: int) -> Iterator[tuple[str | None, str, Any]]:
    if depth > DEEPEST:
        return
    if isinstance(value, list | tuple):
        for part in value:
            yield from _calls(part, depth + 1)
    if not isinstance(value, Mapping):
        return
    call = _call(value)
    if call is not None:
        yield call
        return
    for key in ("function_call", "functionCall", "toolUse"):
        inner = value.get(key)
        if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            given = next((inner[k] for k in ("arguments", "args", "input") if k in inner), None)
            yield None, inner["name"], parsed(given)
    for key in (*_LISTS, "message", "kwargs", "additional_kwargs", "content_blocks"):
        if isinstance(value.get(key), list | tuple | Mapping):
            yield from _calls(value[key], depth + 1)


def _call(part: Mapping[str, Any]) -> tuple[str | None, str, Any] | None:
    ident = next((str(part[k]) for k in ("call_id", "id") if isinstance(part.get(k), str | int)), None)
    function, name = part.get("function"), part.get("name")
    if isinstance(function, Mapping) and isinstance(function.get("name"), str) and "arguments" in function:
        return ident, function["name"], parsed(function["arguments"])
    if not isinstance(name, str):
        return None
    if part.get("type") in ("tool_use", "server_tool_use"):
        return ident, name, parsed(part.get("input"))
    if part.get("type") == "function_call" and "arguments" in part:
        return ident, name, parsed(part["arguments"])
    return (ident, name, parsed(part["args"])) if "args" in part else None


def _answer(value: Any) -> Any:
    """Some tracers record the whole conversation as the answer: what was said before its last question is history."""
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        return value
    others = [n for n, m in enumerate(value) if (who := _role(m)) and who not in _ANSWERS]
    return value[others[-1] + 1 :] if others else value


def _role(message: Mapping[str, Any]) -> str:
    """Blocks and tool calls have a type, too, but it is nobody's role."""
    said = message.get("role") or message.get("type")
    people = (*_ANSWERS, "user", "human", "system", "developer", "tool", "function_call_output")
    return said.lower() if isinstance(said, str) and said.lower() in people else ""


def _wrappers(trace: Trace) -> set[UUID]:
    """A framework's span around a client's span shows the same call twice: the inner one counts."""
    known = {s.span_id: s for s in trace.spans if s.kind in (SpanKind.LLM, SpanKind.TOOL)}
    around = [(known[s.parent_span_id], s) for s in known.values() if s.parent_span_id in known]
    return {outer.span_id for outer, inner in around if outer.kind == inner.kind and _same(outer, inner)}


def _same(outer: Span, inner: Span) -> bool:
    if outer.kind == SpanKind.TOOL:
        return (outer.name, dumped(outer.input)) == (inner.name, dumped(inner.input))
    return _asks(outer) == _asks(inner) != []


def _asks(span: Span) -> list[str]:
    return [dumped(call) for call in asked_for(span.output)]


def _ran(n: int, span: Span) -> Call:
    failed = span.status == SpanStatus.ERROR or bool(span.error)
    name, given = span.name, parsed(span.input)
    if isinstance(given, Mapping):
        if isinstance(given.get("name"), str) and "args" in given:  # LangChain hands its tools the whole call
            name, given = given["name"], given["args"]
        elif set(given) == {"args", "kwargs"} and not given["args"]:  # a decorated Python function
            given = given["kwargs"]
        elif set(given) in ({"arguments"}, {"kwargs"}, {"input_str"}):
            given = parsed(next(iter(given.values())))
    return Call(n, name, given, True, failed, span.error or "", span.output)


class _Waiting:
    """Calls that no run was found for yet, by their place; an index of them, since a run that searched all of them would make
    the reading of a trace quadratic."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self._index: defaultdict[tuple[str, ...], deque[int]] = defaultdict(deque)
        self._unindexed: list[int] = []

    def add(self, calls: Mapping[int, Call]) -> None:
        self.calls |= calls
        self._unindexed += calls

    def pop(self, place: int) -> Call:
        return self.calls.pop(place)

    def asking(self, ran: Call) -> int | None:
        """Same name and arguments, else the same name, else the same arguments; of several the first."""
        for place in self._unindexed:
            for entry in self._entries(self.calls[place]):
                self._index[entry].append(place)
        self._unindexed.clear()
        name, arguments = ran.key
        firsts = map(self._first, (("key", name, arguments), ("name", name), ("arguments", arguments)))
        return next((place for place in firsts if place is not None), None)

    def _entries(self, call: Call) -> Iterator[tuple[str, ...]]:
        name, arguments = call.key
        yield from (("key", name, arguments), ("name", name))
        if call.parameters:
            yield "arguments", arguments

    def _first(self, entry: tuple[str, ...]) -> int | None:
        places = self._index.get(entry, deque())
        while places and places[0] not in self.calls:
            places.popleft()
        return places[0] if places else None


def _fuller(ran: Call, asked: Call) -> Any:
    return ran.parameters if ran.parameters not in (None, "", {}, []) else asked.parameters


def parsed(value: Any) -> Any:
    """Arguments often travel as JSON in a string."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _declarations(value: Any, depth: int = 0) -> Iterator[Any]:
    """Not what was said: a message may well talk about tools."""
    if depth > 4 or not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        name = str(key).rpartition(".")[2].lower()
        if name in _DECLARED or str(key).lower().endswith("tool.definitions"):
            yield parsed(inner)
        elif name not in _TALK:
            yield from _declarations(inner, depth + 1)


def _tools(n: int, declared: Any) -> Iterator[Tool]:
    if isinstance(declared, Mapping):
        by_name = [{"name": name, **about} for name, about in declared.items() if isinstance(about, Mapping)]
        declared = [declared] if "name" in declared or "function" in declared else by_name
    for given in declared if isinstance(declared, list | tuple) else ():
        shape = parsed(given)
        if isinstance(shape, str) and shape.strip():
            yield Tool(n, shape.strip()[:200])
        if not isinstance(shape, Mapping):
            continue
        inside = [v for k, v in shape.items() if str(k).lower() in _DECLARED[-2:]]
        if inside:  # Gemini's lists in a list
            yield from (tool for more in inside for tool in _tools(n, more))
        elif tool := _tool(n, shape):
            yield tool


def _tool(n: int, shape: Mapping[str, Any]) -> Tool | None:
    about = next((shape[k] for k in ("function", "toolSpec") if isinstance(shape.get(k), Mapping)), shape)
    name = about.get("name", about.get("type"))  # a vendor's own tools have a type for a name
    if not isinstance(name, str) or name in ("", "function"):
        return None
    schema = next((about[k] for k in _SCHEMAS if isinstance(about.get(k), Mapping)), None)
    schema = schema["json"] if schema and isinstance(schema.get("json"), Mapping) else schema
    return Tool(n, name[:200], str(about.get("description") or "")[:2000], schema)
