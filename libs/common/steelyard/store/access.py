"""Organisations, projects and keys: who is asking, and for which project."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import text

from steelyard.store.database import Tx

PREFIX = "sk_sy_"


@dataclass(frozen=True)
class Caller:
    """An organisation's key, or what stands for one."""

    org_id: UUID
    key_id: UUID


async def make_key(tx: Tx, organization: str, name: str, expires_at: datetime | None = None) -> tuple[str, UUID]:
    """The key itself is returned here and kept nowhere: 256 random bits, stored as a hash."""
    org = (await tx.execute(_ORGANIZATION, {"id": uuid4(), "name": organization})).scalar_one()
    key = PREFIX + secrets.token_urlsafe(32)
    row = {"id": uuid4(), "org": org, "name": name, "prefix": key[: len(PREFIX) + 6], "hash": digest(key)}
    await tx.execute(_KEY, row | {"expires": expires_at})
    return key, row["id"]


async def caller_of(tx: Tx, key: str) -> Caller | None:
    """Found by hash: the comparison of secrets is an index lookup of something nobody can steer byte by byte."""
    row = (await tx.execute(_CALLER, {"hash": digest(key)})).one_or_none()
    return Caller(row.org_id, row.id) if row else None


async def project_of(tx: Tx, caller: Caller, name: str) -> UUID:
    """Made on first use, also when many first requests arrive at once: one inserts, the others read."""
    for _ in range(2):
        found = (await tx.execute(_PROJECT, {"org": caller.org_id, "name": name})).scalar()
        if found is not None:
            return UUID(str(found))
        await tx.execute(_NEW_PROJECT, {"id": uuid4(), "org": caller.org_id, "name": name})
    raise LookupError(f"project {name} was deleted while it was being made")


async def owns_project(tx: Tx, caller: Caller, project: UUID) -> bool:
    return (await tx.execute(_OWNS, {"org": caller.org_id, "project": project})).scalar() is not None


async def keys(tx: Tx) -> list[dict[str, object]]:
    return [dict(r._mapping) for r in await tx.execute(_KEYS)]


async def revoke(tx: Tx, prefix: str) -> int:
    return (await tx.execute(_REVOKE, {"prefix": prefix})).rowcount


def digest(key: str) -> bytes:
    """A plain hash is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(key.encode()).digest()


_ORGANIZATION = text(
    """
    INSERT INTO organizations (id, name) VALUES (:id, :name)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
    """
)
_KEY = text(
    """
    INSERT INTO api_keys (id, org_id, name, prefix, hash, expires_at)
    VALUES (:id, :org, :name, :prefix, :hash, :expires)
    """
)
_CALLER = text(
    """
    SELECT id, org_id FROM api_keys
    WHERE hash = :hash AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    """
)
_PROJECT = text("SELECT id FROM projects WHERE org_id = :org AND name = :name")
_NEW_PROJECT = text(
    "INSERT INTO projects (id, org_id, name) VALUES (:id, :org, :name) ON CONFLICT (org_id, name) DO NOTHING"
)
_OWNS = text("SELECT 1 FROM projects WHERE org_id = :org AND id = :project")
_KEYS = text(
    """
    SELECT k.prefix, k.name, o.name AS organization, k.created_at, k.expires_at, k.revoked_at
    FROM api_keys k JOIN organizations o ON o.id = k.org_id ORDER BY k.created_at
    """
)
_REVOKE = text("UPDATE api_keys SET revoked_at = now() WHERE prefix = :prefix AND revoked_at IS NULL")
