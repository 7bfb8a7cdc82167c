"""A Postgres of a test's own, which may refuse writes as one does that is no longer the primary."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from eventually import eventually
from steelyard_local.postgres import start_postgres
from steelyard_local.processes import Home


@contextmanager
def own_postgres() -> Iterator[str]:
    """The owner's URL of a database that exists."""
    home = Home.fresh("postgres")
    try:
        yield start_postgres(home).url("postgres")
    finally:
        home.close()


@asynccontextmanager
async def read_only(owner_url: str, cut: bool = True) -> AsyncIterator[None]:
    """Sessions that go on are refused writes; with `cut` they end, and whoever comes back meets a server like a standby."""
    await _read_only(owner_url, "on", cut)
    try:
        yield
    finally:
        await _read_only(owner_url, "off", cut=False)


async def _read_only(owner_url: str, value: str, cut: bool) -> None:
    owner = await asyncpg.connect(owner_url)
    await owner.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await owner.execute("SELECT pg_reload_conf()")

    async def holds() -> bool:
        return bool(await owner.fetchval("SHOW default_transaction_read_only") == value)

    await eventually(holds, f"default_transaction_read_only is {value}")
    if cut:
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('steelyard_api', 'steelyard_worker')"
        )
    await owner.close()
