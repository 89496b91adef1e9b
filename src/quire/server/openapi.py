"""The OpenAPI document, made from the table of routes and the types of their bodies; nothing is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from quire import __version__
from quire.server.errors import ErrorResponse
from quire.server.routes.endpoint import Endpoint

_REF = "#/components/schemas/{name}"
_EVENT = {
    "type": "object",
    "description": "One event of the stream. `data` is a JSON object, or `[DONE]`.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""OpenAPI before 3.2 has no word for the items of a stream, so tools take the schema for that of each."""
_STATUSES = {
    "400": "The request is not valid.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model or path.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "An internal error.",
    "503": "The engine is not there, or the server is shutting down.",
}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of routes."""
    table = list(endpoints)
    kinds: list[Any] = [ErrorResponse]
    for endpoint in table:
        kinds += [kind for kind in (endpoint.body, endpoint.answer, endpoint.chunk)
                  if kind is not None and not isinstance(kind, str) and kind not in kinds]  # fmt: skip
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    known = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in table:
        path = re.sub(r":\w+}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, known)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quire", "version": __version__, "description": "OpenAI's HTTP API over one model."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(endpoint: Endpoint, path: str, known: Mapping[Any, Any]) -> dict[str, Any]:
    """Return one operation: its parameters, body and answers."""
    made: dict[str, Any] = {"summary": endpoint.summary, "responses": {"200": _success(endpoint, known)}}
    names = re.findall(r"{(\w+)}", path)
    if names:
        made["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                              for name in names]  # fmt: skip
    if endpoint.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": known[endpoint.body]}}}
    error = {"application/json": {"schema": known[ErrorResponse]}}
    for status, text in _STATUSES.items():
        made["responses"][status] = {"description": text, "content": error}
    if endpoint.path.startswith("/health"):  # a health check says why, whatever its status
        either = {"anyOf": [known[endpoint.answer], known[ErrorResponse]]}
        made["responses"]["503"]["content"] = {"application/json": {"schema": either}}
    return made


def _success(endpoint: Endpoint, known: Mapping[Any, Any]) -> dict[str, Any]:
    answer = endpoint.answer
    content: dict[str, Any] = (
        {answer.partition(";")[0]: {"schema": {"type": "object" if answer == "application/json" else "string"}}}
        if isinstance(answer, str)
        else {"application/json": {"schema": known[answer]}}
    )
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": "Success.", "content": content}
