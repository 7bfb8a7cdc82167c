"""`make bench-lists`: every list of the contract over a large project, by HTTP and as the API's role sees it."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from steelyard_local.bench.connection import Connection
from steelyard_local.bench.figures import percentile, table
from steelyard_local.bench.plans import show_plans
from steelyard_local.bench.requests import Ask, Samples, asks
from steelyard_local.bench.seed import PROJECT, seed, version
from steelyard_local.bench.stage import Clock, Stage, staged
from steelyard_local.processes import LaunchFailed

DATABASE = "bench_lists"
SLOW = 50.0
WARM_UP = 5
# Above this, sixty times are not waited for; the table says how many it were.
MOST_SECONDS = 30.0


@dataclass(frozen=True)
class Measured:
    ask: Ask
    status: int
    total: str
    size: int
    took: Sequence[float]

    @property
    def slow(self) -> bool:
        return self.status == 200 and percentile(self.took, 0.95) > SLOW

    def row(self) -> list[str]:
        if self.status != 200:
            gone = "not there" if self.status in (404, 405, 422) else "failed"
            return [self.ask.path, "", "", "", "", "", "", f"{gone} ({self.status})"]
        times = [percentile(self.took, 0.5), percentile(self.took, 0.95), max(self.took)]
        shown = [f"{ms:.1f}" for ms in times]
        return [self.ask.path, self.total, str(self.size), str(len(self.took)), *shown, "over 50" if self.slow else ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m steelyard_local.bench.lists", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the data in .local/bench, and use what is there")
    parser.add_argument("--times", type=int, default=60, help="requests of each kind, after a warm-up")
    parser.add_argument("--only", default="", help="kinds whose path or group contains this")
    parser.add_argument("--explain", action="store_true", help="show the plans of the slow ones")
    asked = parser.parse_args()
    try:
        with staged(keep=asked.keep) as stage:
            asyncio.run(bench(stage, asked.times, asked.only, asked.explain))
    except (KeyboardInterrupt, LaunchFailed) as e:
        print(str(e) or "stopped", file=sys.stderr)
        return 1
    return 0


async def bench(stage: Stage, times: int, only: str, explain: bool) -> None:
    clock = Clock()
    env, key = await _seeded(stage, clock)
    headers = {"X-API-Key": key, "X-Project-Name": PROJECT}
    line = await Connection.open(stage.api("api-1", env), headers)
    samples = await _samples(stage.url(DATABASE))
    clock.say(f"the API is ready; {times} requests of each kind")
    found = [await _measure(line, ask, samples, times) for ask in asks() if only in ask.path or only in ask.group]
    await line.close()
    for group in dict.fromkeys(m.ask.group for m in found):
        print(f"\n{group}\n" + table(HEAD, [m.row() for m in found if m.ask.group == group]))
    slow = [m for m in found if m.slow]
    print(f"\n{len(slow)} of {len(found)} over {SLOW:.0f} ms at p95")
    clock.say("done")
    if explain:
        await show_plans(stage, env, headers, [m.ask.fill(samples, 0) for m in slow])


async def _measure(line: Connection, ask: Ask, samples: Samples, times: int) -> Measured:
    for n in range(WARM_UP):
        status, body = await line.ask("GET", ask.fill(samples, n))
    took: list[float] = []
    until = time.monotonic() + MOST_SECONDS
    while status == 200 and len(took) < times and time.monotonic() < until:
        path = ask.fill(samples, len(took))
        began = time.perf_counter()
        status, body = await line.ask("GET", path)
        took.append((time.perf_counter() - began) * 1000)
    return Measured(ask, status, _total(body), len(body), took)


def _total(body: bytes) -> str:
    """Of how many rows the page is one, or how many there are without pages."""
    said = json.loads(body)
    if isinstance(said, list):
        return str(len(said))
    return str(said.get("total", "")) if isinstance(said, dict) else ""


async def _seeded(stage: Stage, clock: Clock) -> tuple[Mapping[str, str], str]:
    """Data of other tables or of an interrupted seeding is made anew."""
    note = stage.home.path / "seeded"
    ready = note.exists() and note.read_text() == version()
    if not ready:
        note.unlink(missing_ok=True)
        await _dropped(stage)
    env = await stage.database(DATABASE)
    key = stage.key(env)
    if not ready:
        clock.say("seeding")
        await seed(stage.url(DATABASE), clock)
        note.write_text(version())
    return env, key


async def _dropped(stage: Stage) -> None:
    owner = await asyncpg.connect(stage.url("postgres"))
    try:
        await owner.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    finally:
        await owner.close()


async def _samples(url: str) -> Samples:
    owner = await asyncpg.connect(url)
    try:
        project = await owner.fetchval("SELECT id FROM projects WHERE name = $1", PROJECT)
        found = {name: await owner.fetch(query, project) for name, query in _SAMPLES.items()}
    finally:
        await owner.close()
    return {name: [str(row[0]) for row in rows] for name, rows in found.items()}


HEAD = ("GET", "total", "bytes", "n", "p50 ms", "p95 ms", "max ms", "")
_TIME = "SELECT to_char(max(started_at) - interval '{}', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM traces WHERE project_id = $1"
_SAMPLES: Mapping[str, str] = {
    "trace": "SELECT trace_id FROM traces WHERE project_id = $1 ORDER BY md5(trace_id::text) LIMIT 70",
    "session": "SELECT session_id FROM sessions WHERE project_id = $1 ORDER BY md5(session_id) LIMIT 70",
    "user": """
        SELECT user_id FROM traces WHERE project_id = $1 AND user_id <> 'user-busy' ORDER BY md5(trace_id::text) LIMIT 70
    """,
    "run": "SELECT id FROM runs WHERE project_id = $1",
    "scored": "SELECT trace_id FROM trace_scores WHERE project_id = $1 ORDER BY md5(id::text) LIMIT 70",
    **{name: _TIME.format(ago) for name, ago in (("end", "-1 minute"), ("day", "1 day"), ("week", "7 days"))},
    **{name: _TIME.format(ago) for name, ago in (("month", "30 days"), ("begin", "60 days"))},
}


if __name__ == "__main__":
    sys.exit(main())
