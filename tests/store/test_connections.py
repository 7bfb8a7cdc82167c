"""Connections of a pool: what ends them, and what that means for whoever had one."""

import socket

import asyncpg
import pytest
from sqlalchemy import exc, text

from addresses import Urls
from steelyard.store.database import Database, Tx, away, contended, temporary

LOCK = text("SELECT pg_advisory_xact_lock(7)")


async def pid(tx: Tx) -> int:
    return int((await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def test_a_process_that_stands_still_in_a_transaction_holds_up_nobody(urls: Urls, database: Database) -> None:
    stopped = Database(urls.worker, idle_in_transaction_session_timeout="200ms")
    with pytest.raises(exc.DBAPIError) as lost:
        async with stopped.begin() as tx:
            await tx.execute(LOCK)
            async with database.begin() as other:
                await other.execute(LOCK)
            await pid(tx)  # it goes on, and finds that it has nothing any more
    assert temporary(lost.value) and away(lost.value)
    async with stopped.begin() as tx:
        await tx.execute(LOCK)
    await stopped.stop()


async def test_a_statement_that_took_too_long_passes_and_its_connection_is_not_used_again(urls: Urls) -> None:
    slow = Database(urls.worker, pool=1, statement_timeout="100ms")
    with pytest.raises(exc.DBAPIError) as cut:
        async with slow.begin() as tx:
            before = await pid(tx)
            await tx.execute(text("SELECT pg_sleep(60)"))
    assert temporary(cut.value) and not away(cut.value) and not contended(cut.value)
    async with slow.begin() as tx:
        assert await pid(tx) != before
    await slow.stop()


async def test_a_lock_that_is_not_to_be_had_passes_and_keeps_its_connection(urls: Urls, database: Database) -> None:
    waiting = Database(urls.worker, pool=1, lock_timeout="100ms")
    async with database.begin() as held:
        await held.execute(LOCK)
        with pytest.raises(exc.DBAPIError) as refused:
            async with waiting.begin() as tx:
                before = await pid(tx)
                await tx.execute(LOCK)
    assert temporary(refused.value) and contended(refused.value) and not away(refused.value)
    async with waiting.begin() as tx:
        assert await pid(tx) == before
    await waiting.stop()


async def test_what_the_driver_refuses_to_send_is_not_waited_for(database: Database) -> None:
    with pytest.raises(exc.DBAPIError) as refused:
        async with database.begin() as tx:
            await tx.execute(text("SELECT CAST(:n AS int)"), {"n": 2**40})
    assert not temporary(refused.value) and not away(refused.value)


async def test_a_table_that_a_migration_changes_is_read_again(urls: Urls) -> None:
    owner = Database(urls.owner, pool=1)
    changing = await asyncpg.connect(urls.owner)
    await changing.execute("CREATE TABLE heaps (id int)")
    everything = text("SELECT * FROM heaps")
    async with owner.begin() as tx:
        await tx.execute(everything)
    await changing.execute("ALTER TABLE heaps ADD COLUMN more int")
    with pytest.raises(exc.DBAPIError) as stale:
        async with owner.begin() as tx:
            await tx.execute(everything)
    assert temporary(stale.value)
    async with owner.begin() as tx:
        assert list((await tx.execute(everything)).keys()) == ["id", "more"]
    await changing.close()
    await owner.stop()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no such option on this system")
async def test_a_server_whose_host_vanished_is_noticed(database: Database) -> None:
    async with database.begin() as tx:
        raw = (await tx.get_raw_connection()).driver_connection
        assert raw is not None
        wire = raw._transport.get_extra_info("socket")
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


async def test_the_login_that_is_refused_is_waited_for(urls: Urls) -> None:
    stranger = Database(urls.worker.replace("steelyard-tests", "another"))
    with pytest.raises(exc.DBAPIError) as refused:
        async with stranger.begin():
            pass
    assert temporary(refused.value) and away(refused.value)
    assert "password" in str(await stranger.unwell())
    await stranger.stop()
