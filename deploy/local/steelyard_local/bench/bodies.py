"""Traces to send: ten spans each, about 300 bytes in and 300 out, as an agent with tools makes them."""

import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

SPANS = 10
WORDS = [
    *("refund", "order", "train", "ticket", "customer", "agent", "answer", "invoice", "payment", "delivery"),
    *("before", "after", "because", "please", "confirm", "cancel", "return", "policy", "warehouse", "status"),
]
_ID = re.compile(rb"@(\d+)@")


class Bodies:
    """Made once and given fresh ids each time: no JSON is written while something is being measured."""

    def __init__(self, variants: int = 40) -> None:
        chance = random.Random(7)
        made = [json.dumps(_trace(chance), separators=(",", ":")).encode() for _ in range(variants)]
        self._parts = [_ID.split(body) for body in made]

    def fresh(self, who: int) -> Iterator[tuple[str, bytes]]:
        """A trace's id and its body, without end; five traces in a row are one session of one user."""
        for n, parts in enumerate(_around(self._parts, who)):
            ids = [str(uuid4()) for _ in range(SPANS + 1)]
            ids.append(f"session-{who}-{n // 5}-{ids[0][:8] if n % 5 == 0 else ''}")
            said = [ids[int(part)].encode() if odd % 2 else part for odd, part in enumerate(parts)]
            yield ids[0], b"".join(said)


def _around(parts: list[list[bytes]], start: int) -> Iterator[list[bytes]]:
    n = start
    while True:
        yield parts[n % len(parts)]
        n += 1


def _trace(chance: random.Random) -> dict[str, Any]:
    began = datetime.now(UTC)
    ended = began + timedelta(seconds=chance.uniform(2, 9))
    return {
        "trace_id": "@0@",
        "name": f"support/{chance.choice(WORDS)}",
        "input": {"messages": [{"role": "user", "content": _text(chance)}]},
        "output": {"role": "assistant", "content": _text(chance)},
        "metadata": {"channel": "web", "attempt": chance.randint(1, 3)},
        "started_at": began.isoformat(),
        "ended_at": ended.isoformat(),
        "session_id": f"@{SPANS + 1}@",
        "user_id": f"user-{chance.randint(1, 500)}",
        "tags": ["bench", chance.choice(("chat", "mail"))],
        "environment": "production",
        "release": "2026.11.3",
        "spans": [_span(chance, n, began) for n in range(SPANS)],
    }


def _span(chance: random.Random, n: int, began: datetime) -> dict[str, Any]:
    start = began + timedelta(milliseconds=200 * n)
    span: dict[str, Any] = {
        "span_id": f"@{n + 1}@",
        "parent_span_id": "@1@" if n else None,
        "name": f"step-{n}",
        "kind": "AGENT" if not n else ("LLM" if n % 2 else "TOOL"),
        "status": "OK",
        "input": {"messages": [{"role": "user", "content": _text(chance)}]},
        "output": {"content": _text(chance)},
        "started_at": start.isoformat(),
        "ended_at": (start + timedelta(milliseconds=180)).isoformat(),
    }
    if n % 2:
        span |= {
            "model": "gpt-5.4-mini",
            "token_usage": {"prompt_tokens": chance.randint(100, 900), "completion_tokens": chance.randint(20, 300)},
            "cost": {"total": round(chance.uniform(0.0001, 0.01), 6)},
        }
    return span


def _text(chance: random.Random, size: int = 270) -> str:
    said = ""
    while len(said) < size:
        said += chance.choice(WORDS) + " "
    return said[:size]
