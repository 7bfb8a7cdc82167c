"""`python -m steelyard_api.keys`: make, list and revoke API keys. A key is shown once and stored as a hash."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import DBAPIError

from steelyard.settings import from_environment
from steelyard.store import access
from steelyard.store.access import Row
from steelyard.store.database import Database, Tx, reason
from steelyard.traces import storable


class Stopped(Exception):
    """What cannot be done, in a sentence for whoever typed the command."""


def main() -> None:
    try:
        sys.stdout.write(asyncio.run(_run(_arguments().parse_args())))
    except Stopped as e:
        sys.exit(f"keys: {e}")
    except (DBAPIError, OSError) as e:
        sys.exit(f"keys: {reason(e)}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steelyard_api.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key; prints it, and nothing else, on standard output")
    create.add_argument("--org", required=True, type=_name, help="the organisation it belongs to; made if it is new")
    create.add_argument("--name", default="default", type=_name, help="what it is for")
    create.add_argument("--days", type=_days, help="days until it expires; never, without this")
    commands.add_parser("list", help="every key by its first characters, with its id")
    revoke = commands.add_parser("revoke", help="end a key")
    revoke.add_argument("key", help="its first twelve characters as list shows them, its id, or the key itself")
    return parser


def _name(said: str) -> str:
    """As /admin has them: the same name is the same organisation, whoever makes it."""
    name = str(storable(said.strip()))
    if not 0 < len(name) <= 255:
        raise argparse.ArgumentTypeError("a name of 1 to 255 characters")
    return name


def _days(said: str) -> float:
    days = float(said)
    if not 0 < days <= 36_500:
        raise argparse.ArgumentTypeError("a number of days above 0 and up to 36500")
    return days


async def _run(asked: argparse.Namespace) -> str:
    database = Database(from_environment().api_database_url.get_secret_value(), pool=2)
    try:
        async with database.begin() as tx:
            if asked.command == "create":
                expires = datetime.now(UTC) + timedelta(days=asked.days) if asked.days else None
                key, _ = await access.make_key(tx, asked.org, asked.name, expires)
                return f"{key}\n"
            if asked.command == "list":
                return "".join(_line(row) for row in await access.keys(tx))
            return await revoke(tx, asked.key)
    finally:
        await database.stop()


async def revoke(tx: Tx, said: str) -> str:
    """Ends one key or none: where the first characters fit several, their ids decide."""
    meant = await access.keys_like(tx, said.strip().rstrip("….").rstrip())
    if not meant:
        raise Stopped(f"no key is called {said[: access.SHOWN]}, or it is revoked already")
    if len(meant) > 1:
        listed = "".join(f"\n  {row['id']}  {row['name']}" for row in meant)
        raise Stopped(f"{said} is ambiguous; say which by its id:{listed}")
    await access.revoke(tx, meant[0]["id"])
    return f"revoked {meant[0]['prefix']}…  {meant[0]['name']}\n"


def _line(row: Row) -> str:
    state = (
        "revoked" if row["revoked_at"] else f"expires {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "valid"
    )
    return f"{row['prefix']}…  {row['organization']}  {row['name']}  {state}  {row['id']}\n"


if __name__ == "__main__":
    main()
