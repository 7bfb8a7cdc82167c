"""What the API takes, read out of its own description, and requests with any bytes in any of those places."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

from starlette.types import ASGIApp, Message

Headers = tuple[tuple[bytes, bytes], ...]
JSON: Headers = ((b"content-type", b"application/json"),)
Place = tuple[str | int, ...]
HERE = "@here@"
TIME = "2026-03-01T10:00:00Z"


@dataclass(frozen=True)
class Ask:
    """A request as bytes: nothing between the corpus and the app makes it any better."""

    method: str
    path: str  # as on the wire, percent-encoded
    query: bytes = b""
    body: tuple[bytes, ...] | None = None
    headers: Headers = ()
    chunked: bool = False

    def __str__(self) -> str:
        sent = b"".join(self.body or ())
        return f"{self.method} {self.path[:150]}?{self.query[:200]!r} {sent[:300]!r} {str(self.headers)[:300]}"


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    read: int = 0  # messages of the body that the app asked for before it answered

    def json(self) -> Any:
        return json.loads(self.body)


async def send(app: ASGIApp, ask: Ask) -> Answer:
    """Straight into the app, as a server would call it."""
    answer, parts = Answer(), list(reversed(ask.body or (b"",)))

    async def receive() -> Message:
        if not parts:
            return {"type": "http.disconnect"}
        answer.read += not answer.status
        return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

    async def respond(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(_scope(ask), receive, respond)
    return answer


def _scope(ask: Ask) -> dict[str, Any]:
    length: Headers = ()
    if ask.body is not None and not any(k == b"content-length" for k, _ in ask.headers):
        length = ((b"transfer-encoding", b"chunked"),)
        if not ask.chunked:
            length = ((b"content-length", str(sum(map(len, ask.body))).encode()),)
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": ask.method, "scheme": "http",
        "path": unquote(ask.path), "raw_path": ask.path.encode(), "root_path": "", "query_string": ask.query,
        "headers": [(b"host", b"steelyard"), *ask.headers, *length],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    query: Mapping[str, Mapping[str, Any]]
    takes: Mapping[str, Any] | None  # the schema of its body
    takes_key: bool

    @property
    def named(self) -> list[str]:
        """The names in its path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


class Surface:
    """Every operation of the API, with a good request for each, to be made bad in one place."""

    def __init__(self, document: Mapping[str, Any], headers: Headers, known: dict[str, str]) -> None:
        self.schemas, self.headers, self.known = document["components"]["schemas"], headers, known
        self.operations = [
            self._operation(method.upper(), path, said)
            for path, methods in document["paths"].items()
            for method, said in methods.items()
        ]

    def lists(self) -> list[Operation]:
        return [o for o in self.operations if o.method == "GET" and "limit" in o.query]

    def readers(self) -> list[Operation]:
        return [o for o in self.operations if o.method == "GET"]

    def writers(self) -> list[Operation]:
        return [o for o in self.operations if o.takes is not None]

    def fields(self, *kinds: str) -> Iterator[tuple[Operation, Place]]:
        """Every field of every body, also of the spans and filters in it, that takes one of these kinds, or all."""
        for o in self.writers():
            assert o.takes is not None
            for place, schema in self._places(o.takes):
                if not kinds or self._kinds(schema) & set(kinds):
                    yield o, place

    def put(self, place: tuple[Operation, Place], literal: bytes, *headers: tuple[bytes, bytes]) -> Ask:
        """A good body with these bytes where the field's value would be."""
        operation, path = place
        body = self.good(operation)
        _put(body, path, HERE)
        sent = json.dumps(body).encode().replace(json.dumps(HERE).encode(), literal)
        return self.ask(operation, sent, *headers)

    def ask(self, o: Operation, body: bytes | None = None, *headers: tuple[bytes, bytes], query: bytes = b"") -> Ask:
        sent = None if body is None else (body,)
        kind = () if body is None or any(k == b"content-type" for k, _ in headers) else JSON
        named = {k for k, _ in headers}
        kept = tuple((k, v) for k, v in self.headers if k not in named)
        return Ask(o.method, self.path(o), query or self.needed(o), sent, (*kept, *kind, *headers))

    def search(self, o: Operation, parameter: str, raw: str) -> Ask:
        """The operation with this, percent-encoded already, as the one parameter, beside those that it needs."""
        needed = self.needed(o, without=parameter)
        return self.ask(o, self._sent(o), query=b"&".join(filter(None, (needed, f"{parameter}={raw}".encode()))))

    def usual(self, o: Operation, *headers: tuple[bytes, bytes]) -> Ask:
        return self.ask(o, self._sent(o), *headers)

    def parameters(self, *kinds: str) -> Iterator[tuple[Operation, str]]:
        for o in self.operations:
            for name, schema in o.query.items():
                if not kinds or self._kinds(schema) & set(kinds):
                    yield o, name

    def path(self, o: Operation, **instead: str) -> str:
        """What is deleted is unknown: the other requests need the known ones."""
        path = o.path
        for name in o.named:
            known = self.known.get(name, str(uuid4())) if o.method != "DELETE" else str(uuid4())
            path = path.replace(f"{{{name}}}", instead.get(name, quote(known, safe="")))
        return path

    def good(self, o: Operation) -> Any:
        assert o.takes is not None
        return self._example(o.takes, o.path.rsplit("/", 1)[-1])

    def _sent(self, o: Operation) -> bytes | None:
        return None if o.takes is None else json.dumps(self.good(o)).encode()

    def _operation(self, method: str, path: str, said: Mapping[str, Any]) -> Operation:
        given = said.get("parameters", [])
        body = said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        return Operation(
            method,
            path,
            {p["name"]: self._parameter(p) for p in given if p["in"] == "query"},
            body,
            any(p["name"] == "Idempotency-Key" for p in given),
        )

    def _parameter(self, said: Mapping[str, Any]) -> dict[str, Any]:
        words = [w for s in self._either(said["schema"]) for w in s.get("enum", ())]
        return {**said["schema"], "needed": said.get("required"), "words": words}

    def needed(self, o: Operation, without: str = "") -> bytes:
        needed = {n: self._example(s, n) for n, s in o.query.items() if s["needed"] and n != without}
        return "&".join(f"{n}={quote(str(v))}" for n, v in needed.items()).encode()

    def _of(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self.schemas[schema["$ref"].rsplit("/", 1)[-1]]
        return schema

    def _either(self, schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        schema = self._of(schema)
        return [e for s in schema["anyOf"] for e in self._either(s)] if "anyOf" in schema else [schema]

    def _kinds(self, schema: Mapping[str, Any]) -> set[str]:
        either = self._either(schema)
        return {str(s.get("format") or ("enum" if "enum" in s else s.get("type", "any"))) for s in either}

    def _places(self, schema: Mapping[str, Any], before: Place = ()) -> Iterator[tuple[Place, Mapping[str, Any]]]:
        for s in self._either(schema):
            if s.get("type") == "array" and "properties" in self._of(s["items"]):
                yield from self._places(s["items"], (*before, 0))
            for name, inner in s.get("properties", {}).items():
                yield (*before, name), inner
                yield from self._places(inner, (*before, name))

    def _example(self, schema: Mapping[str, Any], name: str) -> Any:
        """A known id where one is meant; otherwise the first example, or the smallest value that fits."""
        s = next((s for s in self._either(schema) if s.get("type") != "null"), {})
        if name in self.known:
            return self.known[name]
        if name == "trace_ids":
            return [self.known["trace_id"]]
        if name == "delete":
            return {"trace_ids": [str(uuid4())]}
        if "properties" in s:
            return self._object(s)
        if s.get("type") == "array":
            item = self._example(s["items"], name.removesuffix("s"))
            return [item] if s.get("minItems") or isinstance(item, dict) else []
        return _smallest(s, name)

    def _object(self, s: Mapping[str, Any]) -> dict[str, Any]:
        made = json.loads(json.dumps(s.get("examples", [{}])[0]))
        for name, inner in s["properties"].items():
            needed = name in s.get("required", ())
            if name == "trace_id" and not needed:
                made.pop(name, None)  # a trace of its own for each request
            elif (
                (name in self.known and name in made)
                or name == "trace_ids"
                or (needed and name not in made)
                or name == "spans"
            ):
                made[name] = self._example(inner, name)
        return dict(made)


def _smallest(s: Mapping[str, Any], name: str) -> Any:
    if name in ("metric", "metrics", "metric_name"):
        return "coherence"
    if "enum" in s:
        return s["enum"][0]
    formats = {"date-time": TIME, "uuid": str(uuid4())}
    kinds: dict[str, Any] = {"integer": s.get("minimum", 1), "number": 0.5, "boolean": True, "object": {}}
    return formats.get(s.get("format", ""), kinds.get(s.get("type", ""), "0.5" if name == "value" else "x"))


def _put(body: Any, place: Place, value: Any) -> None:
    for step in place[:-1]:
        if isinstance(body, dict) and step not in body:
            body[step] = {}
        body = body[step]
    body[place[-1]] = value


def at(body: Sequence[tuple[str, bytes]]) -> bytes:
    """An object out of names and raw values: names may come twice, values may be no JSON."""
    return b"{" + b",".join(json.dumps(k).encode() + b":" + v for k, v in body) + b"}"
