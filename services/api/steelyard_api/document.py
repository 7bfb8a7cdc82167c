"""What the API says about itself at /openapi.json, where FastAPI alone would say too much or too little."""

from typing import Any

from fastapi import FastAPI

WITH_A_BODY = ("413", "415")
# Who asks, and for which project: one of each.
BOTH: list[dict[str, list[str]]] = [
    {who: [], where: []} for who in ("ApiKey", "HTTPBearer") for where in ("ProjectName", "ProjectID")
]


def install(app: FastAPI) -> None:
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _told(made())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """A status is listed where it can happen: what has no body is never too large. FastAPI says of credentials that one
    of them is enough, which is not so."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" not in operation:
                for status in WITH_A_BODY:
                    operation["responses"].pop(status, None)
            if any("ProjectName" in way for way in operation.get("security", ())):
                operation["security"] = BOTH
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return document
