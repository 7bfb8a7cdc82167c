"""`make demo`: the five services on a real Kafka and Postgres score agent traces, show the result and are gone."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

from steelyard.metrics.sessions import RISKS
from steelyard.providers import PROVIDERS, RULES, default_model
from steelyard_local.client import Client
from steelyard_local.demo_traces import TAG, demo_traces
from steelyard_local.processes import Home, LaunchFailed, stopped_by_signals
from steelyard_local.screen import (
    GOOD,
    Mark,
    Paint,
    Row,
    SessionRow,
    bar,
    sessions_table,
    table,
    unscored,
    whys,
)
from steelyard_local.stack import Processes, Stack, environment, in_background

SESSION_METRICS = ("agent_reliability", "agent_consistency")
SIGNAL_RISKS = {risk: signal for signal, risk in RISKS.items()}
# Long enough for a slow model; rules need a second.
PATIENCE = 900.0
INTERRUPTED = 130


def main() -> int:
    """0 when the table was shown; whatever happens, nothing stays behind."""
    demo: Demo | None = None
    with stopped_by_signals():
        try:
            demo = Demo(Home.fresh("demo"), environment())
            demo.play()
            code = 0
        except KeyboardInterrupt:
            print("\nstopping", file=sys.stderr)
            code = INTERRUPTED
        except LaunchFailed as e:
            print(f"\n{demo.explained(str(e)) if demo else e}", file=sys.stderr)
            code = 1
        finally:
            if demo is not None:
                demo.close()
    if demo is not None and not code:
        demo.farewell()
    return code


class Demo:
    def __init__(self, home: Home, environ: Mapping[str, str]) -> None:
        self._began = time.monotonic()
        self._tty = sys.stdout.isatty()
        self._paint = Paint(self._tty and "NO_COLOR" not in os.environ)
        self._environ, self._model = environ, judge_of(environ)
        self._names = Processes.wanted(environ).names()
        self._stack = Stack(home, environ, self._say, organization="demo")
        self._starting: Future[None] | None = None

    def play(self) -> None:
        print(f"{self._paint.bold('Steelyard')}: five services, one Kafka, one Postgres, on this machine alone\n")
        client = self._start()
        traces = self._send(client)
        run = client.post("/evaluations/trace-runs", self._wanted(client))
        self._say(f"the run {run['id']} is created: {', '.join(run['metric_names'])}")
        print(f"    the judge is {self._model}\n")
        run = self._watch(client, run["id"])
        self._show(traces, client.get(f"/evaluations/trace-runs/{run['id']}/scores"), run["metric_names"])
        self._sessions(client, traces)
        print(f"Scored by {about_judge(self._model, self._environ)}.")

    def close(self) -> None:
        self._stack.close(self._starting)

    def explained(self, failure: str) -> str:
        """With the last words of every process that ended without having been asked to: one of them is the reason."""
        untold = [child for child in self._stack.services.dead() if child.tail() not in failure]
        words = [f"{child.name} ended. Its last words:\n{child.tail(30)}" for child in untold]
        return "\n".join([failure.rstrip(), *words])

    def farewell(self) -> None:
        seconds = time.monotonic() - self._began
        print(f"\nDone in {seconds:.1f} s, and everything that was started is stopped.")
        print("Next: `make dev` keeps it running, with an API key and three curl lines to try; README.md has the rest.")

    def _start(self) -> Client:
        self._starting = in_background(lambda: self._stack.start(self._names))
        self._starting.result()
        self._say(f"{' '.join(self._names)} are ready")
        return Client(self._stack.services.base_url, self._stack.key or "", "demo")

    def _send(self, client: Client) -> list[dict[str, Any]]:
        traces = demo_traces(datetime.now(UTC))
        for trace in traces:
            client.post("/traces", trace)
        sessions = len({trace["session_id"] for trace in traces})
        spans = sum(len(trace["spans"]) for trace in traces)
        self._say(f"{len(traces)} traces of {sessions} sessions ({spans} spans) are sent over HTTP")
        return traces

    def _wanted(self, client: Client) -> dict[str, Any]:
        """All that this version offers."""
        offered = [metric["name"] for metric in client.get("/evaluations/trace-metrics")]
        return {"name": "demo", "metrics": offered, "filters": {"tags": [TAG]}}

    def _sessions(self, client: Client, traces: Sequence[dict[str, Any]]) -> None:
        """The signals of their traces are there already, but for one: what was paid for is not paid for again."""
        asked = {"name": "demo", "metrics": list(SESSION_METRICS), "filters": {"tags": [TAG]}}
        run = client.post("/evaluations/session-runs", asked)
        self._say(f"a run of the sessions is created: {', '.join(run['metric_names'])}")
        run = self._watch(client, run["id"], "session")
        scores = client.get(f"/evaluations/session-runs/{run['id']}/scores")
        rows = sessions_of(scores, {t["trace_id"]: t["name"] for t in traces})
        print(f"\n{sessions_table(rows, run['metric_names'], min(_width(), 120), self._paint)}\n")

    def _watch(self, client: Client, run_id: str, of: str = "trace") -> dict[str, Any]:
        began, shown, last = time.monotonic(), "", 0.0
        while True:
            run: dict[str, Any] = client.get(f"/evaluations/{of}-runs/{run_id}")
            seconds = time.monotonic() - began
            ended = run["status"] in ("COMPLETED", "FAILED")
            counts = f"{run['evaluated_count']} {run['failed_count']}"
            if self._tty or ended or (counts != shown and seconds - last >= 1):
                self._draw(run, seconds, ended, f"{of}s")
                shown, last = counts, seconds
            if ended:
                return self._passed(run)
            self._all_alive()
            if seconds > PATIENCE:
                raise LaunchFailed(f"the run is not done after {PATIENCE:.0f} s: {run}")
            time.sleep(0.1)

    def _draw(self, run: Mapping[str, Any], seconds: float, ended: bool, of: str) -> None:
        line = bar(run["evaluated_count"], run["total_targets"], seconds, run["failed_count"], _width() - 4, of)
        if self._tty:
            print(f"\r\x1b[2K    {line}", end="\n" if ended else "", flush=True)
        else:
            print(f"    {line}", flush=True)

    def _passed(self, run: dict[str, Any]) -> dict[str, Any]:
        if run["status"] == "FAILED":
            raise LaunchFailed(f"the run failed: {run['error_message']}")
        return run

    def _all_alive(self) -> None:
        if dead := self._stack.services.dead():
            raise LaunchFailed(f"{dead[0].name} ended in the middle of the run.")

    def _show(self, traces: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
        rows, width = rows_of(traces, scores), min(_width(), 120)
        print(f"\n{table(rows, metrics, width, self._paint)}\n")
        if worst := whys(rows, width=width, paint=self._paint):
            print(f"{self._paint.bold('Why')}\n{worst}\n")
        if missing := unscored(rows, width=width, paint=self._paint):
            print(f"{self._paint.bold('Not scored')}\n{missing}\n")

    def _say(self, line: str) -> None:
        seconds = self._paint.dim(f"{time.monotonic() - self._began:.1f} s")
        if not self._stack.home.closing:
            print(f"  {self._paint.green(GOOD)} {line} {seconds}", flush=True)


def rows_of(traces: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> list[Row]:
    marks: dict[str, dict[str, Mark]] = {trace["trace_id"]: {} for trace in traces}
    for score in scores:
        value, metadata = score["value"], score.get("metadata") or {}
        number = float(value) if value is not None and score["status"] == "SUCCESS" else None
        mark = Mark(number, score["reason"] or "", float(metadata.get("threshold", 0.5)))
        marks.setdefault(score["trace_id"], {})[score["name"]] = mark
    return [Row(t["session_id"], t["name"], t["started_at"], marks[t["trace_id"]]) for t in traces]


def sessions_of(scores: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[SessionRow]:
    """By session; the trace that drags it down is the one that the worst of its metrics names."""
    by_session: dict[str, list[Mapping[str, Any]]] = {}
    for score in scores:
        by_session.setdefault(score["session_id"], []).append(score)
    rows = []
    for session, found in by_session.items():
        marks = {s["name"]: Mark(None if s["value"] is None else float(s["value"]), s["reason"] or "") for s in found}
        worst = min(found, key=lambda s: -1.0 if s["value"] is None else float(s["value"]))
        told = worst.get("metadata") or {}
        trace = told.get("worst_trace")
        risks = {k: v for k, v in told.get("per_trace_signals", {}).get(trace, {}).items() if k in SIGNAL_RISKS}
        because = max(risks, key=lambda k: risks[k]) if risks else ""
        said = f"{SIGNAL_RISKS[because]} {1 - risks[because]:.2f}" if because and risks[because] > 0 else ""
        count = int(told.get("total_traces_in_session", 0))
        rows.append(SessionRow(session, count, marks, names.get(str(trace), "") if said else "", said))
    return rows


def judge_of(environ: Mapping[str, str]) -> str:
    return default_model(environ.get("JUDGE_MODEL"), environ.get("JUDGE_BASE_URL"), environ)


def about_judge(model: str, environ: Mapping[str, str]) -> str:
    """Which judge it is and why this one: a score without its judge is half a number."""
    if model == RULES:
        keys = PROVIDERS[0].variables[0]
        why = "as JUDGE_MODEL says" if environ.get("JUDGE_MODEL") else "no key is set"
        return f"{RULES} ({why}): rules prove failure better than success; set {keys} or another key for a model"
    if environ.get("JUDGE_MODEL"):
        return f"{model}, as JUDGE_MODEL says"
    if environ.get("JUDGE_BASE_URL"):
        return f"{model} at {environ['JUDGE_BASE_URL']}"
    keys = next(v for p in PROVIDERS if p.configured(environ) for v in p.variables if environ.get(v))
    return f"{model}, because {keys} is set"


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns


if __name__ == "__main__":
    sys.exit(main())
