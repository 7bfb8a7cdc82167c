"""`make bench-kills`: one run in peace and the same run while judges die, side by side, and what the deaths cost.

Real processes, Kafka and Postgres, and a model on loopback that takes its time. A judge that is killed (kill -9) is started again
at once, as Kubernetes would. The model's time is long enough that the run waits for it and not for the machine; but each start of
a judge is seconds of CPU, and on few cores the others feel it."""

import argparse
import asyncio
import os
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from steelyard_local.bench.figures import table
from steelyard_local.bench.stage import Clock
from steelyard_local.client import Client
from steelyard_local.processes import Home, LaunchFailed, free_port, stopped_by_signals
from steelyard_local.stack import Stack, environment

TESTS = Path(__file__).resolve().parents[4] / "tests"
METRICS = ["task_completion", "confidence"]


class Bench:
    def __init__(self, stack: Stack, stub: str, traces: int, judges: int, clock: Clock) -> None:
        self._stack, self._stub, self._traces, self._clock = stack, stub, traces, clock
        self._judges = [f"judge-{n}" for n in range(1, judges + 1)]
        self._client = Client(stack.services.base_url, stack.key or "", "bench")

    async def compare(self, kills: int) -> str:
        for n in range(self._traces):
            trace = {"name": f"t{n}", "started_at": "2026-03-01T10:00:00Z", "input": f"q {n}", "output": f"a {n}"}
            await self._call("post", "/traces", trace)
        await self._run(0, 0.2)  # what is imported and cached with a first run is no part of the second one
        peace, paid = await self._run(0)
        killed, paid_again = await self._run(kills)
        rows = [["without a kill", f"{peace:.1f}", str(paid), ""]]
        rows += [[f"with {kills} kills", f"{killed:.1f}", str(paid_again), f"{killed / peace:.2f}"]]
        return table(("run", "seconds", "calls", "times as long"), rows)

    async def _run(self, kills: int, rate: float = 1.0) -> tuple[float, int]:
        calls, began, victims = await self._calls(), time.monotonic(), cycle(self._judges)
        body = {"metrics": METRICS, "sampling_rate": rate}
        run_id, run = (await self._call("post", "/evaluations/trace-runs", body))["id"], dict[str, Any]()
        pairs = int(self._traces * rate) * len(METRICS)
        marks = [(k + 1) * self._traces // (kills + 1) for k in range(kills)]
        while run.get("status") not in ("COMPLETED", "FAILED"):
            await asyncio.sleep(0.5)
            run = await self._call("get", f"/evaluations/trace-runs/{run_id}")
            if marks and run["evaluated_count"] >= marks[0]:
                marks.pop(0)
                victim = next(victims)
                self._stack.services.kill(victim)
                self._stack.services.launch(victim)
        seconds = time.monotonic() - began
        if marks or (run["status"], run["failed_count"]) != ("COMPLETED", 0):
            raise LaunchFailed(
                f"the run ended {run['status']} with {run['failed_count']} failed and {len(marks)} kills to go"
            )
        scores = await self._call("get", f"/evaluations/trace-runs/{run_id}/scores")
        if len({(s["trace_id"], s["name"]) for s in scores}) != pairs or len(scores) != pairs:
            raise LaunchFailed(f"{len(scores)} scores where {pairs} are due")
        self._clock.say(f"{pairs:,} pairs in {seconds:.1f} s, {kills} kills")
        await asyncio.to_thread(self._stack.services.wait, *self._judges)
        return seconds, await self._calls() - calls

    async def _calls(self) -> int:
        async with httpx.AsyncClient(trust_env=False) as client:
            return int((await client.get(f"{self._stub}/stats")).json()["calls"])

    async def _call(self, verb: str, path: str, *body: Any) -> Any:
        return await asyncio.to_thread(getattr(self._client, verb), path, *body)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m steelyard_local.bench.kills", description=__doc__)
    parser.add_argument("--traces", type=int, default=1000, help="two pairs each")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--judges", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8, help="conversations that a judge has at once")
    parser.add_argument("--delay", type=float, default=5.0, help="seconds that a call takes")
    options: Any = parser.parse_args()
    clock, port = Clock(), free_port()
    with stopped_by_signals():
        home = Home.fresh("bench-kills")
        settings = environment() | {"JUDGE_BASE_URL": f"http://127.0.0.1:{port}/v1", "JUDGE_MODEL": "openai/stub"}
        settings |= {"JUDGE_SLOTS": str(options.slots), "EMBEDDING_MODEL": "local/ngram-hash-v1"}
        stack = Stack(home, settings, clock.say, organization="bench")
        command = [sys.executable, "-m", "stub_model", "--port", str(port), "--delay", str(options.delay)]
        try:
            home.start("stub", command, env=os.environ | {"PYTHONPATH": str(TESTS)})
            judges = [f"judge-{n}" for n in range(1, options.judges + 1)]
            stack.start(["api-1", "resolver-1", "aggregator-1", "scheduler-1", *judges])
            bench = Bench(stack, f"http://127.0.0.1:{port}", options.traces, options.judges, clock)
            print("\n" + asyncio.run(bench.compare(options.kills)))
        except (KeyboardInterrupt, LaunchFailed) as e:
            print(str(e) or "stopped", file=sys.stderr)
            return 1
        finally:
            stack.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
