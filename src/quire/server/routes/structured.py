"""The form that an answer must have: `response_format` and `structured_outputs` become a parameter of sampling."""

from __future__ import annotations

import msgspec

from quire.core.structured_outputs import StructuredOutputsParams
from quire.server.errors import invalid
from quire.server.protocol.chat import JsonObjectFormat, JsonSchemaResponseFormat, ResponseFormat
from quire.server.protocol.common import StructuredOutputs


def structured_outputs(
    given: StructuredOutputs | None, response_format: ResponseFormat | None = None
) -> StructuredOutputsParams | None:
    """Return what constrains the text, None if nothing does.

    Args:
        given: The field `structured_outputs`.
        response_format: The field of a chat.

    Raises:
        ApiError: Both were given, or a schema is missing: it fails closed.
        RequestError: What was given is too large, too deep or contradicts itself.
    """
    form = _of_format(response_format)
    if given is None:
        return form
    if form is not None:
        raise invalid("structured_outputs: expected no response_format beside it, got one.")
    return StructuredOutputsParams(**msgspec.structs.asdict(given))


def _of_format(response_format: ResponseFormat | None) -> StructuredOutputsParams | None:
    if isinstance(response_format, JsonObjectFormat):
        return StructuredOutputsParams(json_object=True)
    if isinstance(response_format, JsonSchemaResponseFormat):
        schema = response_format.json_schema.schema
        if schema is None:
            name = "response_format.json_schema.schema"
            raise invalid(f"{name}: expected a JSON schema, got none.", name)
        return StructuredOutputsParams(json=schema)
    return None
