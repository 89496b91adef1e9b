"""The form that an answer must have: `response_format` and `structured_outputs` become parameters of sampling."""

from __future__ import annotations

from quire.server.errors import invalid
from quire.server.protocol.chat import JsonObjectFormat, JsonSchemaResponseFormat, ResponseFormat
from quire.server.protocol.common import StructuredOutputs


def structured_outputs(given: StructuredOutputs | None, response_format: ResponseFormat | None = None) -> None:
    """Return what constrains the text, None if nothing does.

    Args:
        given: The field `structured_outputs`.
        response_format: The field of a chat.

    Raises:
        ApiError: Both were given, or one that is not known here: it fails closed.
    """
    if isinstance(response_format, (JsonObjectFormat, JsonSchemaResponseFormat)):
        raise invalid("response_format: expected text, because this server has no grammars, got another type.")
    if given is not None:
        raise invalid("structured_outputs: expected nothing, because this server has no grammars, got some.")
