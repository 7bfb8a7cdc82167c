"""What the API says about itself at /openapi.json, where FastAPI alone would say too much or too little."""

from typing import Any

from fastapi import FastAPI

WITH_A_BODY = ("413", "415")


def install(app: FastAPI) -> None:
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _told(made())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """A status is listed where it can happen: what has no body is never too large."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" not in operation:
                for status in WITH_A_BODY:
                    operation["responses"].pop(status, None)
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return document
