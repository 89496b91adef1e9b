"""`/openapi.json` and `/docs`: a page of our own that shows the document; it asks no other host for anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from quire.server.http.answers import Answer, JsonAnswer, TextAnswer
from quire.server.routes.endpoint import Call, Endpoint

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #8884; padding: .2rem .6rem; text-align: left; vertical-align: top }
h2 { margin-top: 2.5rem } .method { color: #b35c00 }
"""

Document = Callable[[], Mapping[str, Any]]


def endpoints(document: Document) -> tuple[Endpoint, Endpoint]:
    """Return the two routes that show a document.

    Args:
        document: Returns the OpenAPI document.
    """

    async def openapi(_call: Call, _body: None) -> Answer:
        """Return the document."""
        return JsonAnswer(document())

    async def docs(_call: Call, _body: None) -> Answer:
        """Return the page."""
        return TextAnswer(page(document()).encode(), "text/html; charset=utf-8")

    return (
        Endpoint("GET", "/openapi.json", openapi, "This documentation for programs.", answer="application/json"),
        Endpoint("GET", "/docs", docs, "This documentation for people.", answer="text/html; charset=utf-8"),
    )


def page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as HTML without scripts."""
    schemas = document["components"]["schemas"]
    parts = [_operation(path, method, operation)
             for path, methods in document["paths"].items() for method, operation in methods.items()]  # fmt: skip
    parts += [_schema(name, schema) for name, schema in schemas.items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Quire's HTTP API</title><style>{_STYLE}</style>"
        f"<h1>Quire's HTTP API</h1><p>Version {escape(document['info']['version'])}. The same for programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>{"".join(parts)}</html>'
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    title = f'<span class="method">{method.upper()}</span> <code>{escape(path)}</code>'
    rows = [f"<tr><td>{status}<td>{escape(answer['description'])}<td>{_contents(answer)}"
            for status, answer in operation["responses"].items()]  # fmt: skip
    body = f"<p>Body: {_contents(operation['requestBody'])}</p>" if "requestBody" in operation else ""
    return f"<h2>{title}</h2><p>{escape(operation['summary'])}</p>{body}<table>{''.join(rows)}</table>"


def _contents(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(kind)} {_type(content['schema'])}" for kind, content in answer["content"].items())


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    rows = [f"<tr><td><code>{escape(field)}</code>{'' if field in schema.get('required', ()) else ' (optional)'}"
            f"<td>{_type(kind)}" for field, kind in schema.get("properties", {}).items()]  # fmt: skip
    text = escape(schema.get("description", ""))
    return f'<h2 id="{escape(name)}">{escape(name)}</h2><pre>{text}</pre><table>{"".join(rows)}</table>'


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of ({_type(schema.get('items', {}))})"
    bounds = [f"{word} {schema[key]}" for key, word in
              (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to")) if key in schema]  # fmt: skip
    return escape(" ".join([str(schema.get("type", "any")), *bounds]))
