"""`python -m steelyard_local.bench.load`: many clients send traces for some seconds, in a process of their own."""

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import uvloop

from steelyard_local.bench.bodies import SPANS, Bodies
from steelyard_local.bench.connection import Connection


@dataclass(frozen=True)
class Load:
    """Each client waits for its answer before it sends again; every `look_every`-th trace is read back at once."""

    base_url: str
    headers: Mapping[str, str]
    clients: int
    seconds: float
    look_every: int = 25


@dataclass
class Sent:
    """What came back: ids that were accepted, milliseconds of each, refusals by status, traces read back."""

    accepted: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    looked: int = 0
    unseen: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def pace(self) -> float:
        return len(self.accepted) / self.seconds


def read(said: str) -> Sent:
    wrote = json.loads(said)
    return Sent(**wrote | {"refused": Counter({int(k): n for k, n in wrote["refused"].items()})})


async def send(load: Load) -> Sent:
    """Connections are open and bodies made before the clock starts."""
    bodies, sent = Bodies(), Sent()
    lines = [await Connection.open(load.base_url, load.headers) for _ in range(load.clients)]
    gc.collect()
    gc.disable()
    began, cpu = time.perf_counter(), time.process_time()
    deadline = began + load.seconds
    await asyncio.gather(*(_client(n, line, bodies, load, deadline, sent) for n, line in enumerate(lines)))
    sent.seconds, sent.cpu = time.perf_counter() - began, time.process_time() - cpu
    for line in lines:
        await line.close()
    return sent


async def _client(who: int, line: Connection, bodies: Bodies, load: Load, deadline: float, sent: Sent) -> None:
    for n, (trace_id, body) in enumerate(bodies.fresh(who)):
        began = time.perf_counter()
        if began >= deadline:
            return
        status, _ = await line.ask("POST", "/traces", body)
        if status != 202:
            sent.refused[status] += 1
            continue
        sent.took.append((time.perf_counter() - began) * 1000)
        sent.accepted.append(trace_id)
        if (n + who) % load.look_every == 0:
            await _look(line, trace_id, sent)


async def _look(line: Connection, trace_id: str, sent: Sent) -> None:
    """A 202 means stored: the next request has to find the trace and all of its spans."""
    status, said = await line.ask("GET", f"/traces/{trace_id}")
    sent.looked += 1
    if status != 200 or len(json.loads(said)["spans"]) != SPANS:
        sent.unseen.append(trace_id)


def main() -> None:
    load = Load(**json.load(sys.stdin))
    print(json.dumps(asdict(uvloop.run(send(load)))))


if __name__ == "__main__":
    main()
