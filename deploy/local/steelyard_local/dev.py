"""`make dev`: the system stays up with its logs here, and what dies comes back; one process can be stopped by hand."""

import argparse
import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from steelyard_local.client import Client
from steelyard_local.control import ENV_FILE, FOLDER, Control, already, only_one, tell, write_privately
from steelyard_local.demo import about_judge, judge_of
from steelyard_local.processes import ROOT, Child, Home, LaunchFailed, listening, reap, stopped_by_signals, wait_for
from steelyard_local.screen import Paint
from steelyard_local.stack import COUNTS, Processes, Stack, environment, in_background, new_key

PROJECT = "dev"
STUB = "stub-model"
# In the curl lines to try: a few, so that they fit a line.
SHOWN = ("task_completion", "confidence", "coherence")
SAID = ("KAFKA_BOOTSTRAP", "DATABASE_URL", "API_DATABASE_URL", "TOPIC_PREFIX", "ADMIN_TOKEN")
VERBS = ("stop", "start", "kill", "restart", "status")
USAGE = """\
Without arguments: start Kafka, Postgres and the services and keep them running until Ctrl-C.
With arguments, while it runs, from another terminal:
  status            who runs, with its pid and address
  stop judge-1      SIGTERM: work in flight is finished or handed back; it stays down until `start`
  kill judge-1      kill -9, as a crash would; it stays down until `start`
  start judge-1     again at the same address; a name that is new (judge-3) is a new process
  restart judge-1   stop, then start
A process that dies or is killed by its pid is brought back at once. How many run: {counts}."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m steelyard_local.dev",
        description=USAGE.format(counts=" ".join(f"{variable}=2" for variable in COUNTS.values())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", choices=VERBS)
    parser.add_argument("name", nargs="?", help="judge-1, api-1, kafka, postgres, …")
    asked = parser.parse_args(arguments)
    if asked.verb and not asked.name and asked.verb != "status":
        parser.error(f"{asked.verb} what? For example: {asked.verb} judge-1")
    try:
        return tell(asked.verb, asked.name or "") if asked.verb else keep_running()
    except LaunchFailed as e:
        print(e, file=sys.stderr)
        return 1


def keep_running() -> int:
    """0 after Ctrl-C: that is how it is meant to end."""
    lock = only_one()
    if lock is None:
        print(already())
        return 0
    with lock, stopped_by_signals():
        dev: Dev | None = None
        try:
            for name in reap(FOLDER / "owner.json"):
                print(f"stopped {name}, which a killed `make dev` had left")
            for log in FOLDER.glob("*.log"):
                log.unlink()
            dev = Dev(Home.at(FOLDER), environment())
            dev.run()
            return 0
        except KeyboardInterrupt:
            print("\nstopping: the services finish or hand back what they are at", flush=True)
            return 0
        finally:
            if dev is not None:
                dev.close()
                print("everything is stopped; the data stays in .local/dev", flush=True)


class Dev:
    def __init__(self, home: Home, environ: dict[str, str]) -> None:
        self._home, self._environ = home, environ
        self._paint = Paint(sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        self._names = Processes.wanted(environ, judges=2).names()
        self._wanted: set[str] = set()
        self._deaths: dict[str, Deaths] = {}
        self._colours: dict[str, int] = {}
        self._api_port = wished_port(environ.get("HTTP_PORT", "8000"))
        self._stub = environ.get("JUDGE", "")
        if self._stub not in ("", "stub"):
            raise LaunchFailed(f"JUDGE={self._stub}: only `stub` is known here; a model is named by JUDGE_MODEL.")
        if self._stub:
            address = f"http://127.0.0.1:{home.port(STUB)}/v1"
            environ |= {"JUDGE_BASE_URL": address, "JUDGE_MODEL": "openai/stub"}
            environ.setdefault("JUDGE_API_KEY", "stub")
        environ.setdefault("ADMIN_TOKEN", kept_token())
        self._stack = Stack(home, environ, self._say, durable=True, echo=self._echo)
        self._key = ""
        self._work: Future[None] | None = None

    def run(self) -> None:
        """In a thread, so that a signal interrupts the waiting here and no start in the middle."""
        self._work = in_background(self._start_and_watch)
        self._work.result()

    def close(self) -> None:
        self._wanted.clear()
        self._stack.close(self._work)
        ENV_FILE.unlink(missing_ok=True)

    def _start_and_watch(self) -> None:
        if self._stub:
            self._start_stub()
        self._stack.start(self._names, api_port=self._api_port)
        self._key = self._working_key()
        self._wanted = set(self._home.children)
        self._note()
        print(self._banner(), flush=True)
        control = Control(FOLDER / "control", self._obey)
        with ThreadPoolExecutor(4) as pool:
            while not self._home.closing:
                self._revive()
                control.turn(pool)
                time.sleep(0.2)

    def _revive(self) -> None:
        """At once when it had been well, after a growing pause when it dies young: the others go on meanwhile."""
        for child in self._stack.services.dead():
            if child.name not in self._wanted:
                continue
            deaths = self._deaths.setdefault(child.name, Deaths())
            if deaths.noticed(child):
                pause = f"again in {deaths.pause:.0f} s" if deaths.pause else "starting it again"
                self._say(f"{child.name} (pid {child.pid}) {_end_of(child)}; {pause}")
            if deaths.over():
                self._try_again(child.name)

    def _try_again(self, name: str) -> None:
        try:
            self._begin(name)
        except LaunchFailed as e:
            self._say(str(e))

    def _begin(self, name: str) -> Child:
        if name == STUB:
            self._start_stub()
        else:
            self._stack.start_one(name)
        self._wanted.add(name)
        self._note()
        return self._home.children[name]

    def _start_stub(self) -> None:
        port = self._home.port(STUB)
        argv = [sys.executable, "-m", "stub_model", "--port", str(port)]
        child = self._home.start(STUB, argv, env=self._environ | {"PYTHONPATH": str(ROOT / "tests")}, echo=self._echo)
        wait_for(lambda: listening(port), "the stub model to listen", child)

    def _obey(self, verb: str, name: str) -> str:
        if verb == "status":
            return self._status()
        if verb != "start" and (name not in self._home.children or name not in self._wanted):
            raise LaunchFailed(f"{name} is not running; running are {', '.join(sorted(self._wanted))}.")
        self._say(f"{verb} {name}, as asked")
        if verb != "start":
            self._wanted.discard(name)
            (self._home.kill if verb == "kill" else self._home.stop)(name)
            self._note()
        if verb in ("start", "restart"):
            child = self._begin(name)
            if name in self._stack.services.names():
                self._stack.services.wait(name)
            return f"{name} runs, pid {child.pid}"
        return f"{name} is down until `start {name}`"

    def _status(self) -> str:
        """One line for each process, those that are down by wish left out."""
        services = self._stack.services
        lines = []
        for name, child in list(self._home.children.items()):
            where = services.url(name) if name in services.names() else ""
            lines.append(f"{name:14} {'pid ' + str(child.pid) if child.alive() else 'died':12} {where}".rstrip())
        return "\n".join(lines)

    def _working_key(self) -> str:
        """A key is shown once and stored as a hash, so the newcomer's one is kept beside the data it opens."""
        note = FOLDER / "api-key"
        if note.exists():
            try:
                self._client(note.read_text()).get("/evaluations/trace-metrics")
                return note.read_text()
            except LaunchFailed:
                self._say("the API key of the last time is not known to this database: a new one is made")
        key = new_key("dev", self._stack.env)
        write_privately(note, key)
        return key

    def _client(self, key: str) -> Client:
        return Client(self._stack.services.base_url, key, PROJECT)

    def _note(self) -> None:
        """`.local/dev.env`, for scripts: where everything is now, with the pid of every process by its name."""
        env = self._stack.env
        said = {"BASE_URL": self._stack.services.base_url, "API_KEY": self._key, "PROJECT_NAME": PROJECT}
        said |= {name: env[name] for name in SAID if name in env}
        said |= pids(list(self._home.children.values()))
        write_privately(ENV_FILE, "".join(f"{name}={shlex.quote(value)}\n" for name, value in said.items()))

    def _banner(self) -> str:
        url, bold = self._stack.services.base_url, self._paint.bold
        tool = "  .venv/bin/python -m steelyard_local.dev"
        offered = {m["name"] for m in self._client(self._key).get("/evaluations/trace-metrics")}
        lines = [
            f"\n{bold('Steelyard runs at')} {url}",
            f"API key: {self._key}   project: {PROJECT}   (also in .local/dev.env)",
            "admin:   organisations, projects and keys under /admin, with ADMIN_TOKEN from .local/dev.env",
            f"judge:   {about_judge(judge_of(self._environ), self._environ)}\n",
            bold("Three lines to try, one after the other:"),
            *curls(url, self._key, [m for m in SHOWN if m in offered]),
            f"\n{bold('One process alone')}, from another terminal:",
            f"{tool} status | stop judge-1 | start judge-1 | kill judge-1",
            f"\nLogs of Kafka and Postgres: {FOLDER.relative_to(ROOT)}/*.log. {bold('Ctrl-C stops everything.')}\n",
        ]
        return "\n".join(lines)

    def _echo(self, name: str, line: str) -> None:
        n = self._colours.setdefault(name, len(self._colours))
        print(f"{self._paint.number(n, f'{name:12} |')} {line}", flush=True)

    def _say(self, line: str) -> None:
        self._echo("dev", line)


@dataclass
class Deaths:
    """How often one process died young, and how long the next start waits for that."""

    pid: int = 0
    young: int = 0
    pause: float = 0.0
    again_at: float = 0.0
    started: float = 0.0

    def noticed(self, child: Child) -> bool:
        """True once for each death."""
        if child.pid == self.pid:
            return False
        self.pid = child.pid
        well = time.monotonic() - self.started > 10
        self.young = 0 if well else self.young + 1
        self.pause = 0.0 if well else min(30.0, 2.0 ** (self.young - 1))
        self.again_at = time.monotonic() + self.pause
        return True

    def over(self) -> bool:
        if time.monotonic() < self.again_at:
            return False
        self.started = time.monotonic()
        return True


def pids(children: Iterable[Child]) -> Mapping[str, str]:
    """PID_JUDGE_1 for each process, PID_JUDGE for all of a service."""
    said: dict[str, list[int]] = {}
    for child in children:
        if child.alive():
            name = child.name.upper().replace("-", "_")
            said.setdefault(f"PID_{name}", []).append(child.pid)
            kind, _, number = name.rpartition("_")
            if number.isdecimal():
                said.setdefault(f"PID_{kind}", []).append(child.pid)
    return {name: " ".join(map(str, numbers)) for name, numbers in sorted(said.items())}


def kept_token() -> str:
    """Beside the key, and as long as the data: scripts that learned it go on working."""
    note = FOLDER / "admin-token"
    if not note.exists():
        write_privately(note, secrets.token_urlsafe(24))
    return note.read_text()


def curls(url: str, key: str, metrics: list[str]) -> list[str]:
    """Whole lines that work when pasted: the second keeps the run's id for the third."""
    who = f"-H 'X-API-Key: {key}' -H 'X-Project-Name: {PROJECT}'"
    sent = f"{who} -H 'Content-Type: application/json'"
    ask, say = "When does the last train to Kassel leave?", "The last train to Kassel leaves at 22:41 from platform 7."
    trace = {"name": "train-agent", "session_id": "s-1", "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
    trace |= {"input": ask, "output": say}
    run_id = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"id\"])'"
    run = json.dumps({"metrics": metrics})
    return [
        f"curl -s {url}/traces {sent} -d '{json.dumps(trace)}'; echo",
        f"RUN=$(curl -s {url}/evaluations/trace-runs {sent} -d '{run}' | {run_id}); echo $RUN",
        f"curl -s {url}/evaluations/trace-runs/$RUN/scores {who} | python3 -m json.tool",
    ]


def wished_port(said: str) -> int:
    if not said.isdecimal() or int(said) > 65535:
        raise LaunchFailed(f"HTTP_PORT={said}: say the port that the API shall listen on.")
    return int(said)


def _end_of(child: Child) -> str:
    code = child.process.returncode
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


if __name__ == "__main__":
    sys.exit(main())
