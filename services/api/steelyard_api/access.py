"""Who is asking, and for which project: every route depends on this."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from steelyard.store import access
from steelyard.store.database import Database
from steelyard_api.errors import Refused, not_found

_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="an API key of your organisation")
_project = APIKeyHeader(name="X-Project-Name", auto_error=False, scheme_name="Project", description="made on first use")


@dataclass(frozen=True)
class Visit:
    """A request that may act, on one project."""

    database: Database
    project: UUID
    request_id: str
    author: str | None = None  # a person's id, where one signed in


async def visit(
    request: Request,
    key: Annotated[str | None, Depends(_key)],
    project: Annotated[str | None, Depends(_project)],
) -> Visit:
    """A key and a project of its organisation, by name (made on first use) or by id."""
    database: Database = request.app.state.database
    if not key:
        raise Refused(401, "The X-API-Key header is missing")
    project_id = request.headers.get("X-Project-ID")
    name = (project or "").strip()
    if not name and not project_id:
        raise Refused(400, "The X-Project-Name header is missing", ("X-Project-Name", "is missing"))
    if len(name) > 255 or "\x00" in name:
        raise Refused(422, "Validation error", ("X-Project-Name", "has at most 255 characters"))
    async with database.begin() as tx:
        caller = await access.caller_of(tx, key)
        if caller is None:
            raise Refused(401, "The API key is unknown, expired or revoked")
        if name:
            found = await access.project_of(tx, caller, name)
        else:
            found = _uuid(project_id or "")
            if not await access.owns_project(tx, caller, found):
                raise not_found("Project")
    return Visit(database, found, request.scope["request_id"])


def _uuid(said: str) -> UUID:
    try:
        return UUID(said)
    except ValueError:
        raise not_found("Project") from None


Visitor = Annotated[Visit, Depends(visit)]
