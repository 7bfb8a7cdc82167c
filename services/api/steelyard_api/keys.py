"""`python -m steelyard_api.keys`: make, list and revoke API keys. A key is shown once and stored as a hash."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import DBAPIError

from steelyard.settings import from_environment
from steelyard.store import access
from steelyard.store.database import Database, reason


def main() -> None:
    try:
        asyncio.run(_run(_arguments().parse_args()))
    except (DBAPIError, OSError) as e:
        sys.exit(f"keys: {reason(e)}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steelyard_api.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key; prints it, and nothing else, on standard output")
    create.add_argument("--org", required=True, help="the organisation it belongs to; made if it is new")
    create.add_argument("--name", default="default", help="what it is for")
    create.add_argument("--days", type=float, help="days until it expires; never, without this")
    commands.add_parser("list", help="every key by its first characters")
    revoke = commands.add_parser("revoke", help="end a key")
    revoke.add_argument("prefix", help="its first characters, as list shows them")
    return parser


async def _run(asked: argparse.Namespace) -> None:
    database = Database(from_environment().api_database_url.get_secret_value(), pool=2)
    try:
        async with database.begin() as tx:
            if asked.command == "create":
                expires = datetime.now(UTC) + timedelta(days=asked.days) if asked.days else None
                key, _ = await access.make_key(tx, asked.org, asked.name, expires)
                sys.stdout.write(f"{key}\n")
            elif asked.command == "list":
                for row in await access.keys(tx):
                    sys.stdout.write(_line(row))
            elif not await access.revoke(tx, asked.prefix):
                sys.exit(f"keys: no key begins with {asked.prefix}, or it is revoked already")
    finally:
        await database.stop()


def _line(row: dict[str, object]) -> str:
    state = (
        "revoked" if row["revoked_at"] else f"expires {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "valid"
    )
    return f"{row['prefix']}…  {row['organization']}  {row['name']}  {state}\n"


if __name__ == "__main__":
    main()
