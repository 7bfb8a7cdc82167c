"""Organisations, projects and keys: who is asking, and for which project."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import TextClause, text

from steelyard.store.database import Tx

PREFIX = "sk_sy_"
SHOWN = len(PREFIX) + 6
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Caller:
    """The organisation that a credential speaks for, and the project that was asked for where it has that one."""

    org_id: UUID
    project: UUID | None
    key_id: UUID | None = None
    ended: str | None = None  # why the key lets nobody in any more: revoked, expired


async def caller_of_key(tx: Tx, key: str, project: str | UUID | None) -> Caller | None:
    """Key, organisation and project in one statement. Found by hash, then compared in constant time: what an index or a
    collation holds for equal does not decide who comes in."""
    wanted = digest(key)
    row = (await tx.execute(_by(project, _KEY_NAMED, _KEY_WITH_ID), {"hash": wanted, "project": project})).one_or_none()
    if row is None or not hmac.compare_digest(bytes(row.hash), wanted):
        return None
    ended = "revoked" if row.revoked else "expired" if row.expired else None
    return Caller(row.org_id, row.project, row.id, ended)


async def caller_of_claim(tx: Tx, organization: str, project: str | UUID | None) -> Caller | None:
    """An identity provider names an organisation by its id, or by its own name for it; an id wins."""
    given = {"org": _uuid(organization), "external_id": organization, "project": project}
    row = (await tx.execute(_by(project, _CLAIM_NAMED, _CLAIM_WITH_ID), given)).one_or_none()
    return Caller(row.org_id, row.project) if row else None


async def project_of(tx: Tx, org_id: UUID, name: str) -> UUID:
    """Made on first use, also when many first requests arrive at once: one inserts, the others read."""
    for _ in range(2):
        await tx.execute(_NEW_PROJECT, {"id": uuid4(), "org": org_id, "name": name, "description": ""})
        found = (await tx.execute(_PROJECT, {"org": org_id, "name": name})).scalar()
        if found is not None:
            return UUID(str(found))
    raise LookupError(f"project {name} was deleted while it was being made")


async def make_key(tx: Tx, organization: str, name: str, expires_at: datetime | None = None) -> tuple[str, UUID]:
    """For the command line: the organisation is made when it is new."""
    org = (await tx.execute(_ORGANIZATION_OF, {"id": uuid4(), "name": organization})).scalar_one()
    key, row = await new_key(tx, org, name, expires_at)
    return key, row["id"]


async def new_key(tx: Tx, org_id: UUID, name: str, expires_at: datetime | None) -> tuple[str, Row]:
    """The key itself is returned here and kept nowhere: 256 random bits, stored as a hash."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = {"id": uuid4(), "org": org_id, "name": name, "prefix": key[:SHOWN], "hash": digest(key)}
    (made,) = await _rows(tx, _NEW_KEY, row | {"expires": expires_at})
    return key, made


async def make_organization(tx: Tx, name: str, external_id: str | None) -> Row | None:
    """None when one of the two is taken; `taken` says which. Another one's id cannot become an external id: a token that
    names it would be about two organisations."""
    given = {"id": uuid4(), "name": name, "external_id": external_id, "other": _uuid(external_id or "")}
    return _first(await _rows(tx, _NEW_ORGANIZATION, given))


async def taken(tx: Tx, name: str, external_id: str | None) -> list[str]:
    given = {"name": name, "external_id": external_id, "other": _uuid(external_id or "")}
    (row,) = await _rows(tx, _TAKEN, given)
    return [field for field in ("name", "external_id") if row[field]]


async def organization(tx: Tx, org_id: UUID) -> Row | None:
    return _first(await _rows(tx, _ORGANIZATION, {"id": org_id}))


async def organizations(tx: Tx, limit: int, offset: int) -> tuple[Sequence[Row], int]:
    total = (await tx.execute(_HOW_MANY_ORGANIZATIONS)).scalar_one()
    return await _rows(tx, _ORGANIZATIONS, {"limit": limit, "offset": offset}), int(total)


async def make_project(tx: Tx, org_id: UUID, name: str, description: str) -> Row | None:
    """None when the organisation has one of this name."""
    given = {"id": uuid4(), "org": org_id, "name": name, "description": description}
    return _first(await _rows(tx, _NEW_PROJECT, given))


async def projects(tx: Tx, org_id: UUID, limit: int, offset: int) -> tuple[Sequence[Row], int]:
    total = (await tx.execute(_HOW_MANY_PROJECTS, {"org": org_id})).scalar_one()
    return await _rows(tx, _PROJECTS, {"org": org_id, "limit": limit, "offset": offset}), int(total)


async def keys_of(tx: Tx, org_id: UUID, limit: int, offset: int) -> tuple[Sequence[Row], int]:
    total = (await tx.execute(_HOW_MANY_KEYS, {"org": org_id})).scalar_one()
    return await _rows(tx, _KEYS_OF, {"org": org_id, "limit": limit, "offset": offset}), int(total)


async def key(tx: Tx, key_id: UUID) -> Row | None:
    return _first(await _rows(tx, _KEY, {"id": key_id}))


async def keys(tx: Tx) -> Sequence[Row]:
    return await _rows(tx, _KEYS, {})


async def keys_like(tx: Tx, said: str) -> Sequence[Row]:
    """Those that are not revoked and are meant by their first characters, by their id or as a whole."""
    return await _rows(tx, _KEYS_LIKE, {"prefix": said, "id": _uuid(said), "hash": digest(said)})


async def revoke(tx: Tx, key_id: UUID) -> Row | None:
    """The first time counts: revoking again changes nothing."""
    return _first(await _rows(tx, _REVOKE, {"id": key_id}))


async def change_key(tx: Tx, key_id: UUID, changes: Mapping[str, Any]) -> Row | None:
    """Only `name` and `expires_at`, and only of a key that is not revoked: None of any other."""
    given = {"id": key_id, "name": changes.get("name"), "expires": changes.get("expires_at")}
    return _first(await _rows(tx, _CHANGE_KEY, given | {"dated": "expires_at" in changes}))


def digest(key: str) -> bytes:
    """A plain hash is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def _rows(tx: Tx, statement: TextClause, given: Mapping[str, Any]) -> Sequence[Row]:
    return [dict(row) for row in (await tx.execute(statement, dict(given))).mappings()]


def _first(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


def _by(project: str | UUID | None, named: TextClause, with_id: TextClause) -> TextClause:
    return named if isinstance(project, str) else with_id


def _uuid(said: str) -> UUID | None:
    try:
        return UUID(said)
    except ValueError:
        return None


_NAMED = "LEFT JOIN projects p ON p.org_id = o.id AND p.name = CAST(:project AS text)"
_WITH_ID = "LEFT JOIN projects p ON p.org_id = o.id AND p.id = CAST(:project AS uuid)"
_CALLER_OF_KEY = """
    SELECT k.id, k.org_id, k.hash, p.id AS project, k.revoked_at IS NOT NULL AS revoked,
        coalesce(k.expires_at <= now(), false) AS expired
    FROM api_keys k JOIN organizations o ON o.id = k.org_id {project}
    WHERE k.hash = :hash
"""
_KEY_NAMED, _KEY_WITH_ID = (text(_CALLER_OF_KEY.format(project=p)) for p in (_NAMED, _WITH_ID))
_CALLER_OF_CLAIM = """
    SELECT o.id AS org_id, p.id AS project FROM organizations o {project}
    WHERE o.id = CAST(:org AS uuid) OR o.external_id = CAST(:external_id AS text)
    ORDER BY (o.id = CAST(:org AS uuid)) IS TRUE DESC LIMIT 1
"""
_CLAIM_NAMED, _CLAIM_WITH_ID = (text(_CALLER_OF_CLAIM.format(project=p)) for p in (_NAMED, _WITH_ID))
_ORGANIZATION_OF = text(
    """
    INSERT INTO organizations (id, name) VALUES (:id, :name)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
    """
)
_NEW_ORGANIZATION = text(
    """
    INSERT INTO organizations (id, name, external_id)
    SELECT CAST(:id AS uuid), CAST(:name AS text), CAST(:external_id AS text)
    WHERE NOT EXISTS (SELECT 1 FROM organizations WHERE id = CAST(:other AS uuid))
    ON CONFLICT DO NOTHING RETURNING id, name, external_id, created_at
    """
)
_TAKEN = text(
    """
    SELECT EXISTS (SELECT 1 FROM organizations WHERE name = CAST(:name AS text)) AS name,
        EXISTS (
            SELECT 1 FROM organizations WHERE external_id = CAST(:external_id AS text) OR id = CAST(:other AS uuid)
        ) AS external_id
    """
)
_ORGANIZATION = text("SELECT id, name, external_id, created_at FROM organizations WHERE id = :id")
_ORGANIZATIONS = text(
    """
    SELECT id, name, external_id, created_at FROM organizations
    ORDER BY created_at DESC, id LIMIT :limit OFFSET :offset
    """
)
_HOW_MANY_ORGANIZATIONS = text("SELECT count(*) FROM organizations")
_PROJECT = text("SELECT id FROM projects WHERE org_id = :org AND name = :name")
_NEW_PROJECT = text(
    """
    INSERT INTO projects (id, org_id, name, description) VALUES (:id, :org, :name, :description)
    ON CONFLICT (org_id, name) DO NOTHING RETURNING id, org_id, name, description, created_at
    """
)
_PROJECTS = text(
    """
    SELECT id, org_id, name, description, created_at FROM projects WHERE org_id = :org
    ORDER BY created_at DESC, id LIMIT :limit OFFSET :offset
    """
)
_HOW_MANY_PROJECTS = text("SELECT count(*) FROM projects WHERE org_id = :org")
_SHOWN = """id, org_id, prefix AS key_prefix, name, created_at, expires_at, revoked_at,
    revoked_at IS NULL AND coalesce(expires_at > now(), true) AS is_active"""
_NEW_KEY = text(
    f"""
    INSERT INTO api_keys (id, org_id, name, prefix, hash, expires_at)
    VALUES (:id, :org, :name, :prefix, :hash, :expires) RETURNING {_SHOWN}
    """
)
_KEY = text(f"SELECT {_SHOWN} FROM api_keys WHERE id = :id")
_KEYS_OF = text(
    f"SELECT {_SHOWN} FROM api_keys WHERE org_id = :org ORDER BY created_at DESC, id LIMIT :limit OFFSET :offset"
)
_HOW_MANY_KEYS = text("SELECT count(*) FROM api_keys WHERE org_id = :org")
_KEYS = text(
    """
    SELECT k.id, k.prefix, k.name, o.name AS organization, k.created_at, k.expires_at, k.revoked_at
    FROM api_keys k JOIN organizations o ON o.id = k.org_id ORDER BY k.created_at, k.id
    """
)
_KEYS_LIKE = text(
    """
    SELECT id, prefix, name FROM api_keys WHERE revoked_at IS NULL
    AND (prefix = CAST(:prefix AS text) OR id = CAST(:id AS uuid) OR hash = CAST(:hash AS bytea))
    ORDER BY created_at, id
    """
)
_REVOKE = text(f"UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING {_SHOWN}")
_CHANGE_KEY = text(
    f"""
    UPDATE api_keys SET name = coalesce(CAST(:name AS text), name),
        expires_at = CASE WHEN :dated THEN CAST(:expires AS timestamptz) ELSE expires_at END
    WHERE id = :id AND revoked_at IS NULL RETURNING {_SHOWN}
    """
)
