"""`make bench-ingest`: traces that share a transaction against one transaction for each request, side by side."""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import asyncpg

from steelyard_local.bench.bodies import SPANS
from steelyard_local.bench.figures import percentile, spread, table
from steelyard_local.bench.load import Load, Sent, read
from steelyard_local.bench.stage import Clock, Stage, staged
from steelyard_local.processes import LaunchFailed

# The most traces that one transaction writes, by the name of the way.
WAYS: Mapping[str, str] = {"grouped": "200", "single": "1"}
# Backends tell the statistics what they did when they have been idle for ten seconds.
STATISTICS_LAG = 11.0
HEAD = ("clients", "way", "requests/s", "p50 ms", "p95 ms", "p99 ms", "commits/request", "client CPU", "not 202")


@dataclass
class Way:
    """One API process on a database of its own; commits are counted for each database."""

    name: str
    base_url: str
    database: str
    key: str
    rounds: list[Sent] = field(default_factory=list)
    sent: int = 0
    committed: int = 0
    commits_per_request: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m steelyard_local.bench.ingest", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="of each way, at each level")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64], help="levels of concurrency")
    asked = parser.parse_args()
    clock = Clock()
    try:
        # With fsync: whether commits are shared matters where a commit waits for the disk.
        with staged(durable=True) as stage:
            asyncio.run(bench(stage, asked.clients, asked.rounds, asked.seconds, clock))
    except (KeyboardInterrupt, LaunchFailed) as e:
        print(str(e) or "stopped", file=sys.stderr)
        return 1
    return 0


async def bench(stage: Stage, levels: Sequence[int], rounds: int, seconds: float, clock: Clock) -> None:
    ways = [await _prepared(stage, n, name) for n, name in enumerate(WAYS, 1)]
    clock.say(f"{len(ways)} API processes on one Postgres; {SPANS} spans a trace, {rounds} rounds of {seconds:.0f} s")
    rows, ratios = [], []
    for clients in levels:
        await _level(stage, ways, clients, rounds, seconds, clock)
        rows += [_row(clients, way) for way in ways]
        ratios.append(_ratios(clients, *ways))
    print("\n" + table(HEAD, rows))
    print("\ngrouped / single, over pairs of rounds: min – median – max")
    print(table(("clients", "requests/s", "p95"), ratios))


async def _prepared(stage: Stage, number: int, name: str) -> Way:
    env = await stage.database(f"bench_{name}") | {"INGEST_GROUP": WAYS[name]}
    return Way(name, stage.api(f"api-{number}", env), f"bench_{name}", stage.key(env))


async def _level(stage: Stage, ways: Sequence[Way], clients: int, rounds: int, seconds: float, clock: Clock) -> None:
    """The way that begins alternates: what drifts on the machine hits both alike."""
    for way in ways:
        way.rounds.clear()
        await _round(stage, way, clients, 1.0)
    await _count_commits(stage, ways)
    for n in range(rounds):
        for way in ways if n % 2 == 0 else reversed(ways):
            sent = await _round(stage, way, clients, seconds)
            way.rounds.append(sent)
            clock.say(f"{clients:3} clients, round {n + 1}, {way.name:8} {sent.pace:7.1f} requests/s, {_checked(sent)}")
    await _count_commits(stage, ways)


async def _round(stage: Stage, way: Way, clients: int, seconds: float) -> Sent:
    headers = {"X-API-Key": way.key, "X-Project-Name": "bench"}
    load = Load(way.base_url, headers, clients, seconds)
    sent = await asyncio.to_thread(_in_a_process, load)
    await _all_there(stage, way, sent.accepted)
    way.sent += len(sent.accepted)
    return sent


def _in_a_process(load: Load) -> Sent:
    argv = [sys.executable, "-m", "steelyard_local.bench.load"]
    done = subprocess.run(argv, input=json.dumps(asdict(load)), capture_output=True, text=True)
    if done.returncode:
        raise LaunchFailed(f"the load ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return read(done.stdout)


async def _all_there(stage: Stage, way: Way, accepted: Sequence[str]) -> None:
    """Every 202 is a trace with its spans in Postgres, by its id."""
    owner = await asyncpg.connect(stage.url(way.database))
    try:
        found = await owner.fetchrow(_FOUND, accepted)
    finally:
        await owner.close()
    if found is None or tuple(found) != (len(accepted), len(accepted) * SPANS):
        raise LaunchFailed(f"{way.name}: {len(accepted)} were answered 202, in Postgres are {found}")


def _checked(sent: Sent) -> str:
    if sent.unseen:
        raise LaunchFailed(f"read back right after their 202 and not found: {sent.unseen[:5]}")
    refused = f", not 202: {dict(sent.refused)}" if sent.refused else ""
    return f"{len(sent.accepted)} in Postgres, {sent.looked} read back{refused}"


async def _count_commits(stage: Stage, ways: Sequence[Way]) -> None:
    """Of everything in the way's database since the last time: look-ups of keys too, and three for each check here."""
    await asyncio.sleep(STATISTICS_LAG)
    owner = await asyncpg.connect(stage.url("postgres"))
    try:
        for way in ways:
            committed = await owner.fetchval(_COMMITTED, way.database)
            way.commits_per_request = (committed - way.committed) / max(way.sent, 1)
            way.committed, way.sent = committed, 0
    finally:
        await owner.close()


def _row(clients: int, way: Way) -> list[str]:
    took = [ms for sent in way.rounds for ms in sent.took]
    seconds = sum(sent.seconds for sent in way.rounds)
    refused = sum(sum(sent.refused.values()) for sent in way.rounds)
    numbers = [len(took) / seconds, *(percentile(took, part) for part in (0.5, 0.95, 0.99))]
    cpu = sum(sent.cpu for sent in way.rounds) / seconds
    shown = [f"{n:.1f}" for n in numbers]
    return [str(clients), way.name, *shown, f"{way.commits_per_request:.2f}", f"{cpu:.0%}", str(refused)]


def _ratios(clients: int, grouped: Way, single: Way) -> list[str]:
    pairs = list(zip(grouped.rounds, single.rounds, strict=True))
    paces = [a.pace / b.pace for a, b in pairs]
    tails = [percentile(a.took, 0.95) / percentile(b.took, 0.95) for a, b in pairs]
    return [str(clients), spread(paces), spread(tails)]


_COMMITTED = "SELECT xact_commit FROM pg_stat_database WHERE datname = $1"
_FOUND = """
    SELECT count(*), (SELECT count(*) FROM spans WHERE trace_id = ANY($1::uuid[]))
    FROM traces WHERE trace_id = ANY($1::uuid[])
"""


if __name__ == "__main__":
    sys.exit(main())
