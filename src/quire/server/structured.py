"""`response_format` of a chat becomes a parameter of sampling."""

from __future__ import annotations

from collections.abc import Mapping

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams


def structured_outputs_of(response_format: object) -> StructuredOutputsParams | None:
    """Return what constrains an answer, None if nothing does.

    A schema is enforced whether `strict` is set or not; where it cannot be, the request is refused.

    Args:
        response_format: The field as JSON: None, or an object whose "type" is "text", "json_object" or "json_schema".

    Raises:
        RequestError: It is of another form, or its schema is too large, too deep or missing.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise RequestError(f"response_format: expected an object, got {type(response_format).__name__}.")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind != "json_schema":
        raise RequestError(f"response_format.type: expected text, json_object or json_schema, got {str(kind)[:80]!r}.")
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError("response_format.json_schema.schema: expected a JSON schema, an object, got none.")
    strict = described.get("strict") if isinstance(described, Mapping) else None
    if strict not in (None, True, False):
        raise RequestError(f"response_format.json_schema.strict: expected true or false, got {str(strict)[:80]!r}.")
    return StructuredOutputsParams(json=schema)
