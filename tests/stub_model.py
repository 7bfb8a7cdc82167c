"""A model on loopback that speaks OpenAI's, Anthropic's and Gemini's wire, understands our questions, and misbehaves as
it is told. Whoever asks `/token` for one gets a token, as at Google's.

`python -m stub_model --port N [--delay S]`, or in a test: `async with stub_model() as stub: … stub.base_url`.
`POST /control` takes a Behaviour, `GET /stats` says what was asked so far.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRICKLE = "x-stub-trickle"
SEEN = "as the stub sees it"
WIRES = ("/chat/completions", "/embeddings", "/messages", ":generateContent")
_NONCE = re.compile(r'"nonce" must be exactly "([^"]+)"')
_BOUNDARY = re.compile(r"<<<(\S+)")
_HINT = re.compile(r"JSON: (\{.*\})", re.DOTALL)


VERDICT = '{"nonce": "NONCE", "score": 1, "reason": "because", "evidence": []}'
# Misbehaviour by name, for those who have only `POST /control {"mode": …}`.
MODES: Mapping[str, Mapping[str, Any]] = {
    "normal": {},
    "nonsense": {"nonsense": True},
    "wrong_nonce": {"wrong_nonce": True},
    "truncated": {"truncate": True},
    "two_verdicts": {"say": f"{VERDICT}\n{VERDICT}"},
    "out_of_range": {"say": VERDICT.replace("1,", "7,")},
    "hang": {"hang": True},
    "trickle": {"trickle": True},
    "refuse_schema": {"refuse": ("json_schema",)},
    "refusal": {"refusal": "I will not grade this."},
}


class Behaviour(BaseModel):
    """How requests are answered: the next `times` of them, or all until told otherwise. `say` is a whole reply, in
    which NONCE stands for the right nonce; `refuse` names the response formats that get a 400, and more than `at_most`
    calls at once a 429. In `message` and `say`, HEADERS stands for the request's own: its key. The texts of a `signed`
    reply hold its question's mark, by which the stats count too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay: float = 0.0
    hang: bool = False
    trickle: bool = False
    status: int = 200
    message: str = "the stub was told to fail"
    code: str | None = None
    retry_after: float | None = None
    truncate: bool = False
    nonsense: bool = False
    wrong_nonce: bool = False
    say: str | None = None
    score: float | None = None
    signed: bool = False
    refuse: tuple[str, ...] = ()
    refusal: str | None = None
    at_most: int | None = None
    times: int | None = None


@dataclass
class Stub:
    usual: Behaviour = field(default_factory=Behaviour)
    told: Behaviour | None = None
    left: int | None = None
    base_url: str = ""
    calls: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    by_trace: Counter[str] = field(default_factory=Counter)
    by_question: Counter[str] = field(default_factory=Counter)
    limited: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def tell(self, mode: str = "normal", **behaviour: Any) -> None:
        """Nothing at all means: as usual again."""
        behaviour = {**MODES[mode], **behaviour}
        self.told = Behaviour(**behaviour) if behaviour else None
        self.left = self.told.times if self.told else None

    def stats(self) -> dict[str, Any]:
        counted = {"calls": self.calls, "in_flight": self.in_flight, "max_in_flight": self.max_in_flight}
        return {**counted, "by_trace": dict(self.by_trace), "by_question": dict(self.by_question)}

    def behaviour(self) -> Behaviour:
        if self.told is None or self.left == 0:
            return self.usual
        self.left = None if self.left is None else self.left - 1
        return self.told

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                size = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(size.group(1))) if size else b""
                status, answer, more = await self.answered(head, body)
                await _sent(writer, _response(status, answer, more), slowly=TRICKLE in more)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the caller left, or the stub ends
        finally:
            self.connections.discard(task)
            writer.close()

    async def answered(self, head: str, body: bytes) -> tuple[int, Any, Mapping[str, str]]:
        path = head.split(" ", 2)[1].partition("?")[0]
        if path.endswith("/stats"):
            return 200, self.stats(), {}
        if path.endswith("/control"):
            return self.controlled(body)
        if path.endswith("/token"):
            return 200, {"access_token": "stub-token", "token_type": "Bearer", "expires_in": 3600}, {}
        if not path.endswith(WIRES):
            return 404, _error(f"there is no {path} here"), {}
        self.calls += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            self.heads = [*self.heads[-99:], head]
            return await self.asked(path, head, orjson.loads(body))
        finally:
            self.in_flight -= 1

    def controlled(self, body: bytes) -> tuple[int, Any, Mapping[str, str]]:
        try:
            self.tell(**orjson.loads(body or b"{}"))
        except (ValidationError, TypeError, KeyError, orjson.JSONDecodeError) as e:
            return 422, _error(str(e)), {}
        return 200, self.stats(), {}

    async def asked(self, path: str, head: str, raw: dict[str, Any]) -> tuple[int, Any, Mapping[str, str]]:
        request = _heard(path, raw)
        self.requests = [*self.requests[-99:], request]
        self.by_question[_mark(request)] += 1
        if found := _BOUNDARY.search(_said(request, "user")):
            self.by_trace[found.group(1)] += 1
        how = self.behaviour()
        quoted = {k: v.replace("HEADERS", head) for k in ("message", "say") if (v := getattr(how, k))}
        how = how.model_copy(update=quoted)
        if how.at_most is not None and self.in_flight > how.at_most:
            self.limited += 1
            how = how.model_copy(update={"status": 429, "message": "too many at once", "delay": 0.0})
        if how.hang:
            await asyncio.Event().wait()
        if how.delay:
            await asyncio.sleep(how.delay)
        if how.status != 200:
            waits = {} if how.retry_after is None else {"retry-after": f"{how.retry_after:g}"}
            return how.status, _error(how.message, how.code), waits
        kind = (request.get("response_format") or {}).get("type", "text")
        if kind in how.refuse:
            return 400, _error(f"Invalid parameter: 'response_format' of type '{kind}' is not supported"), {}
        slowly = {TRICKLE: "a byte at a time"} if how.trickle else {}
        if path.endswith("/embeddings"):
            return 200, _embeddings(request), slowly
        return 200, _spoken(path, _completion(request, how)), slowly


@asynccontextmanager
async def stub_model(port: int = 0, delay: float = 0.0) -> AsyncIterator[Stub]:
    stub = Stub(Behaviour(delay=delay))
    server = await asyncio.start_server(stub.connected, "127.0.0.1", port, backlog=1024, limit=2**20)
    stub.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield stub
    finally:
        server.close()
        for task in list(stub.connections):
            task.cancel()
        await asyncio.gather(*stub.connections, return_exceptions=True)


async def _sent(writer: asyncio.StreamWriter, response: bytes, slowly: bool) -> None:
    """A slow answer always has a next byte on its way: a limit between two bytes never ends it."""
    size = 1 if slowly else len(response)
    for i in range(0, len(response), size):
        writer.write(response[i : i + size])
        await writer.drain()
        if slowly:
            await asyncio.sleep(0.05)


def _response(status: int, answer: Any, more: Mapping[str, str]) -> bytes:
    body = orjson.dumps(answer)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **more}
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'No'}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _heard(path: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Another vendor's request in OpenAI's words."""
    if path.endswith("/messages"):
        said = [{"role": "system", "content": raw.get("system", "")}, *raw["messages"]]
        schema = (raw.get("output_format") or {}).get("schema")
    elif path.endswith(":generateContent"):
        system = raw.get("system_instruction") or raw.get("systemInstruction") or {"parts": []}
        said = [{"role": "system", "content": system["parts"]}]
        said += [{"role": c["role"], "content": c["parts"]} for c in raw["contents"]]
        schema = raw.get("generationConfig", {}).get("response_json_schema")
    else:
        return raw
    messages = [{"role": m["role"], "content": _words(m["content"])} for m in said]
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}} if schema else {"type": "text"}
    return {"model": raw.get("model", path), "messages": messages, "response_format": wanted, "raw": raw}


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _spoken(path: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer in the vendor's words."""
    choice, used = answer["choices"][0], answer["usage"]
    said, asked, answered = choice["message"]["content"], used["prompt_tokens"], used["completion_tokens"]
    if path.endswith("/messages"):
        why = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}[choice["finish_reason"]]
        return {
            "id": "stub", "type": "message", "role": "assistant", "model": answer["model"], "stop_reason": why,
            "content": [{"type": "text", "text": said}], "usage": {"input_tokens": asked, "output_tokens": answered},
        }  # fmt: skip
    if path.endswith(":generateContent"):
        why = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}[choice["finish_reason"]]
        content = {"role": "model", "parts": [{"text": said}]}
        used = {"promptTokenCount": asked, "candidatesTokenCount": answered, "totalTokenCount": asked + answered}
        return {"candidates": [{"content": content, "finishReason": why, "index": 0}], "usageMetadata": used}
    return answer


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "stub_error", "param": None, "code": code}}


def _said(request: Mapping[str, Any], role: str) -> str:
    return "\n".join(str(m["content"]) for m in request.get("messages", []) if m["role"] == role)


def _completion(request: dict[str, Any], how: Behaviour) -> dict[str, Any]:
    prompt = _said(request, "user")
    text = _reply(request, prompt, how)
    shown = text[: len(text) // 2] if how.truncate else text
    asked, answered = len(prompt) // 4, max(1, len(shown) // 4)
    return {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model", "stub"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": shown} | ({"refusal": how.refusal} if how.refusal else {}),
                "finish_reason": "length" if how.truncate else "content_filter" if how.refusal else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
            "prompt_tokens_details": {"cached_tokens": asked // 2},
        },
    }


def _reply(request: Mapping[str, Any], prompt: str, how: Behaviour) -> str:
    found = _NONCE.search(_said(request, "system"))
    nonce = found.group(1) if found else "no nonce was asked for"
    if how.nonsense:
        return "As a large language model I would say that this went rather well."
    if how.say is not None:
        return how.say.replace("NONCE", nonce)
    schema = _schema(request, prompt)
    answer = filled(schema, schema.get("$defs", {}), _number(prompt), "")
    answer["nonce"] = "0" * len(nonce) if how.wrong_nonce else nonce
    if how.score is not None and "score" in answer:
        answer["score"] = how.score
    said = orjson.dumps(answer).decode()
    return said.replace(SEEN, f"{SEEN}, {_mark(request)}") if how.signed else said


def _mark(request: Mapping[str, Any]) -> str:
    """The same for the same question, whoever asks it and however often."""
    said = f"{_said(request, 'system')}\0{_said(request, 'user')}"
    return f"question-{hashlib.blake2b(said.encode('utf-8', 'replace'), digest_size=6).hexdigest()}"


def _schema(request: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The schema that was sent; without one, what the question's own last line asks for."""
    shape = (request.get("response_format") or {}).get("json_schema")
    if shape:
        given: dict[str, Any] = shape["schema"]
        return given
    hint = _HINT.findall(prompt)
    names = re.findall(r'"(\w+)":', hint[-1]) if hint else ["nonce"]
    kinds: dict[str, dict[str, Any]] = {"score": {"enum": list(LEVELS)}, "evidence": {"type": "array"}}
    return {"type": "object", "properties": {n: kinds.get(n, {"type": "string"}) for n in names}}


def filled(schema: Mapping[str, Any], defs: Mapping[str, Any], number: int, name: str) -> Any:
    """A value that the schema allows, the same one for the same prompt."""
    if "$ref" in schema:
        return filled(defs[schema["$ref"].rpartition("/")[2]], defs, number, name)
    if options := schema.get("enum") or schema.get("anyOf"):
        chosen = options[number % len(options)]
        return filled(chosen, defs, number, name) if isinstance(chosen, dict) else chosen
    if schema.get("type") == "object":
        return {k: filled(v, defs, number, k) for k, v in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [filled(schema.get("items", {}), defs, number, name) for _ in range(schema.get("minItems", 0))]
    plain = {"boolean": number % 2 == 0, "integer": 0, "number": LEVELS[number % 5], "null": None}
    return plain.get(schema.get("type", ""), f"{name or 'text'} {SEEN}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _embeddings(request: Mapping[str, Any]) -> dict[str, Any]:
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = [{"object": "embedding", "index": i, "embedding": _vector(str(t))} for i, t in enumerate(texts)]
    tokens = sum(len(str(t)) // 4 for t in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.get("model", "stub"), "usage": usage}


def _vector(text: str, size: int = 64) -> list[float]:
    vector = [0.0] * size
    for word in re.findall(r"\w+", text.lower()):
        vector[_number(word) % size] += 1.0
    length = math.sqrt(sum(v * v for v in vector)) or 1.0
    return [v / length for v in vector]


async def _serve(port: int, delay: float) -> None:
    async with stub_model(port, delay) as stub:
        sys.stdout.write(f"{stub.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--delay", type=float, default=0.0)
    given = arguments.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.port, given.delay))
