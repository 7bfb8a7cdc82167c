"""The launcher's promise: whatever becomes of it, what it started is found again and ended."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventually import eventually
from steelyard_local import down
from steelyard_local.dev import Deaths, curls, pids
from steelyard_local.kafka import start_kafka
from steelyard_local.processes import Home, LaunchFailed, bindable, free_port, reap, stopped_by_signals
from steelyard_local.stack import Processes, Services, database_urls

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@contextmanager
def a_launcher(folder: Path, children: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that starts children of its own, and stops them in order when it is asked to."""
    script = f"""
        import sys, time
        from pathlib import Path
        from steelyard_local.processes import Home, stopped_by_signals
        home = Home.at(Path({str(folder)!r}))
        with stopped_by_signals():
            try:
                for n in range({children}):
                    home.start(f"child-{{n}}", {SLEEP!r})
                (home.path / "up").touch()
                time.sleep(600)
            except KeyboardInterrupt:
                home.close()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        reap(folder / "owner.json", delete=True)


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    said = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in said.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_children_of_a_killed_launcher_are_reaped_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "stacks" / "demo-1"
    with a_launcher(folder, children=2) as launcher:
        await eventually((folder / "up").exists, "the launcher to have started its children")
        left = children_of(launcher)
        launcher.kill()
        launcher.wait()
        assert len(left) == 2 and all(alive(pid) for pid in left)
        assert sorted(reap(folder / "owner.json", delete=True)) == ["child-0", "child-1"]
        await eventually(lambda: not any(alive(pid) for pid in left), "the children to be gone")
        assert not folder.exists()


async def test_down_lets_a_living_launcher_stop_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stacks" / "demo-1"
    with a_launcher(folder) as launcher:
        await eventually((folder / "up").exists, "the launcher to have started its child")
        left = children_of(launcher)
        down.main(tmp_path)
        launcher.wait()
        assert not any(alive(pid) for pid in left)
        assert f"stopped demo (pid {launcher.pid}) with child-0" in capsys.readouterr().out
    down.main(tmp_path)
    assert "nothing was running" in capsys.readouterr().out


def test_a_pid_that_belongs_to_another_by_now_is_left_alone(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    bystander = home.start("child", SLEEP)
    note = home.path / "owner.json"
    note.write_text(note.read_text().replace('"started": "', '"started": "9'))
    try:
        assert reap(note) == [] and bystander.alive()
    finally:
        home.close()


def test_nothing_is_started_once_everything_is_being_stopped(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.close()
    with pytest.raises(LaunchFailed, match="everything is being stopped"):
        home.start("late", SLEEP)


def test_two_stacks_of_one_checkout_do_not_touch_each_other() -> None:
    one, other = Home.fresh("law"), Home.fresh("law")
    try:
        child = other.start("child", SLEEP)
        one.close()
        assert one.path != other.path and other.path.exists() and child.alive()
    finally:
        other.close()


async def test_what_is_started_again_keeps_its_port_unless_another_has_it(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    port = home.port("api-1", preferred=free_port())
    assert home.port("api-1") == port
    home.start("squatter", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)])
    try:
        await eventually(lambda: not bindable(port), "the squatter to listen")
        assert home.port("api-1", preferred=port) != port
    finally:
        home.close()


def test_a_missing_java_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed) as refused:
        start_kafka(Home.at(tmp_path / "home"), path=str(tmp_path))
    said = str(refused.value)
    assert "java is missing: install" in said and "\n" not in said


def test_a_second_signal_does_not_interrupt_the_stopping() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests were begun in the background
    with stopped_by_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_how_many_processes_run_is_said_by_variables() -> None:
    names = Processes.wanted({"JUDGES": "3", "SCHEDULERS": "0"}).names()
    assert names == ["api-1", "resolver-1", "judge-1", "judge-2", "judge-3", "aggregator-1"]
    for wrong in ({"JUDGES": "many"}, {"APIS": "0"}):
        with pytest.raises(LaunchFailed, match=next(iter(wrong))):
            Processes.wanted(wrong)


def test_the_roles_of_a_given_database_are_as_given_or_beside_the_owner() -> None:
    urls = database_urls("postgresql://me:p%40ss@db:5433/mine", {"WORKER_DATABASE_URL": "postgresql://w:x@pool:6432/y"})
    assert urls["DATABASE_URL"] == "postgresql://me:p%40ss@db:5433/mine"
    assert urls["API_DATABASE_URL"] == "postgresql://steelyard_api:p%40ss@db:5433/mine"
    assert urls["WORKER_DATABASE_URL"] == "postgresql://w:x@pool:6432/mine"


def test_pids_are_told_by_process_and_by_service(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    try:
        one, two = home.start("judge-1", SLEEP), home.start("judge-2", SLEEP)
        said = pids(home.children.values())
        assert said == {"PID_JUDGE": f"{one.pid} {two.pid}", "PID_JUDGE_1": f"{one.pid}", "PID_JUDGE_2": f"{two.pid}"}
    finally:
        home.close()


async def test_a_process_that_dies_young_waits_longer_each_time(tmp_path: Path) -> None:
    home, deaths, pauses = Home.at(tmp_path / "home"), Deaths(), []
    try:
        for _ in range(3):
            child = home.start("judge-1", [sys.executable, "-c", ""])
            deaths.started = time.monotonic()
            child.process.wait()
            assert deaths.noticed(child) and not deaths.noticed(child)
            pauses.append(deaths.pause)
        assert pauses == [1.0, 2.0, 4.0]
    finally:
        home.close()


def test_the_three_lines_to_paste_are_three_lines() -> None:
    lines = curls("http://127.0.0.1:8000", "sk", ["confidence"])
    assert len(lines) == 3 and all(line.count("\n") == 0 for line in lines)
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0


SLOW = """
import asyncio
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if Path(os.environ["READY"]).exists() else 503)
        self.end_headers()
        self.wfile.write(b'{"why": "it is still waking up"}')

HTTPServer(("127.0.0.1", int(os.environ["HTTP_PORT"])), Answer).serve_forever()
"""


async def test_a_judge_that_wakes_up_slowly_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "steelyard_judge").mkdir()
    (tmp_path / "steelyard_judge" / "__init__.py").touch()
    (tmp_path / "steelyard_judge" / "__main__.py").write_text(SLOW)
    woken, said = tmp_path / "woken", list[str]()
    home = Home.at(tmp_path / "home")
    services = Services(home, os.environ | {"PYTHONPATH": str(tmp_path), "READY": str(woken)}, say=said.append)
    try:
        services.launch("judge-1")
        waiting = asyncio.create_task(asyncio.to_thread(services.wait, "judge-1", late=0.1))
        await eventually(lambda: any("still waking up" in line for line in said), "it is said who is waited for")
        assert said[-1].startswith("judge-1 is not ready after ") and not waiting.done()
        woken.touch()
        await waiting
        await asyncio.to_thread(services.kill, "judge-1")
        with pytest.raises(LaunchFailed, match="judge-1 ended while starting"):
            await asyncio.to_thread(services.wait, "judge-1", late=0.1)
    finally:
        home.close()
