"""The API keeps what its own description says: asked with whatever that description allows, and with what it forbids."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import uvicorn

from addresses import Urls
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database
from steelyard_api.app import api

# Minutes, and several times as many where the machine is busy with other things: it says when its program hangs, and no more.
PATIENCE = 1800
HOOKS = Path(__file__).parents[1] / "schemathesis_hooks.py"
CONFIG = """
# A 400 is for requests that make sense and cannot be done (contract/README.md: unknown metric, no trace matches, sampling
# rate 0): whether one is depends on what is stored, which a description does not say.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 429, 503]

# What these take depends on two fields at once, which only their sentences say: a value on its data_type, something to add or
# to remove, something to change, both ends of a time.
[[operations]]
include-path-regex = "^/(evaluations/trace-scores.*|traces/batch/tags|sessions/analytics)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 422, 429, 503]

# One path, described twice because the contract has it so: a trace's or session's id on GET, a score's on PATCH and DELETE. What
# the path allows is what both descriptions say, and the check reads one.
[[operations]]
include-path-regex = "^/evaluations/(trace|session)-scores/[{](trace|session|score)_id[}]$"
checks.allow_header_conformance.enabled = false

# So a DELETE of a session's scores is described: by a path that looks the same to the check, and means a score.
[[operations]]
include-path-regex = "^/evaluations/session-scores/[{]session_id[}]$"
checks.allow_header_conformance.enabled = false
checks.unsupported_method.enabled = false
"""


@pytest.fixture
async def address(urls: Urls) -> AsyncIterator[str]:
    """A real server: the checks are about bytes on a wire too."""
    database = Database(urls.api)
    app = api(_settings(urls), database)
    # As TCP by name: only such a socket is spared Nagle's 40 ms before each answer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        async with _serving(_Server(uvicorn.Config(app, log_config=None, access_log=False)), listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    await database.stop()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test session's: uvicorn would give back a handler of a loop that has ended."""
        yield


@asynccontextmanager
async def _serving(server: uvicorn.Server, listening: socket.socket) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _settings(urls: Urls) -> Settings:
    return Settings.model_validate(
        {"api_database_url": urls.api, "max_body_mb": 2, "judge_model": None, "judge_base_url": None}
        | {"runs_per_minute": 0, "requests_per_minute": 0}
    )


@pytest.mark.parametrize("examples", [4, pytest.param(30, marks=pytest.mark.soak)])
async def test_every_answer_is_as_described(
    address: str, api_database: Database, tmp_path: Path, examples: int
) -> None:
    async with api_database.begin() as tx:
        key, _ = await access.make_key(tx, "acme", "tests")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--no-color"),
        *("-H", f"X-API-Key: {key}", "-H", "X-Project-Name: p"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--mode", "all", "--max-examples", str(examples)),
        *("--generation-deterministic", "--generation-allow-x00", "true", "--workers", "2"),
        *("--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off"),
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HOOKS.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE):
        said, _ = await asking.communicate()
    assert asking.returncode == 0, said.decode()
