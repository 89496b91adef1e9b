"""What clients are told when something fails: the catalogue of answers that are not 2xx."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from quire.core.errors import CapacityError, QuireError, RequestError
from quire.core.log import get_logger
from quire.server.engine_client import EngineDeadError, OverloadedError

_log = get_logger(__name__)

_MAX_MESSAGE_CHARS = 1000
# Our messages start with the field they are about: "max_tokens: expected ..." or "messages[0].role: expected ...".
_PARAM = re.compile(r"([a-z_][a-z0-9_]*(?:\[\d+\]|\.[a-z_][a-z0-9_]*)*)(?: key)?: ", re.ASCII)


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong.

    Attributes:
        message: A sentence for people: what, what was expected, what was got, what to do.
        type: Kind of error.
        param: The field that is at fault, if one is.
        code: A word for programs, if there is one beside the type.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every answer that is not 2xx, and the frame that ends a stream that failed."""

    error: ErrorBody


class ApiError(QuireError):
    """An answer that is not 2xx.

    Args:
        status: HTTP status.
        kind: `error.type`.
        message: `error.message`.
        param: The field at fault.
        code: `error.code`.
        retry_after_s: When a client may come back; None if it must not send the same request again.
        more: Further headers.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self._more = more
        self.status = status
        self.retry_after_s = retry_after_s
        text = message.encode("utf-8", "replace").decode()[:_MAX_MESSAGE_CHARS]
        self.body = ErrorBody(text, kind, param, code)

    def encoded(self) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode(ErrorResponse(self.body))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer: its type, and whether and when to try again."""
        headers = [(b"content-type", b"application/json"), *self._more]
        if self.retry_after_s is None:
            headers.append((b"x-should-retry", b"false"))
        else:
            seconds = max(1, math.ceil(self.retry_after_s))
            headers += [(b"retry-after", str(seconds).encode()), (b"x-should-retry", b"true")]
        return headers


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return 400; without `param` it is the field that the message starts with."""
    if param is None and (found := _PARAM.match(message)):
        param = found[1]
    return ApiError(400, "invalid_request_error", message, param=param, code=code)


def not_honoured(name: str, expected: str, hint: str = "") -> ApiError:
    """Return 400 for a field that is known but has no effect here."""
    message = f"{name}: expected {expected}, because this server does not honour it, got another value.{hint}"
    return invalid(message, name, "unsupported_parameter")


def unauthorized() -> ApiError:
    """Return 401."""
    message = 'API key: expected one of this server\'s in "Authorization: Bearer KEY", got none or another.'
    more = [(b"www-authenticate", b"Bearer")]
    return ApiError(401, "authentication_error", message, code="invalid_api_key", more=more)


def no_route(path: str) -> ApiError:
    """Return 404 for an unknown path."""
    message = f"path: expected one listed under /docs, got {path[:200]!r}."
    return ApiError(404, "not_found_error", message, code="unknown_path")


def no_model(name: str, known: tuple[str, ...]) -> ApiError:
    """Return 404 for an unknown model."""
    message = f"model: expected {' or '.join(map(repr, known))}, got {name[:200]!r}. /v1/models lists what is served."
    return ApiError(404, "not_found_error", message, param="model", code="model_not_found")


def no_engine(number: int, num_engines: int) -> ApiError:
    """Return 404 for an unknown engine."""
    message = f"engine: expected 0 to {num_engines - 1}, got {str(number)[:20]}."
    return ApiError(404, "not_found_error", message, param="engine", code="engine_not_found")


def wrong_method(method: str, expected: str) -> ApiError:
    """Return 405."""
    message = f"method: expected {expected} for this path, got {method[:20]!r}."
    return ApiError(
        405, "invalid_request_error", message, code="method_not_allowed", more=[(b"allow", expected.encode())]
    )


def slow_body(limit_s: float) -> ApiError:
    """Return 408: the body did not arrive in time."""
    message = f"body: expected all of it within {limit_s:g} s, got less. Send it faster or make it smaller."
    return ApiError(408, "invalid_request_error", message, code="request_timeout")


def too_large(limit_bytes: int) -> ApiError:
    """Return 413."""
    message = f"body: expected at most {limit_bytes} bytes, got more. Split the request."
    return ApiError(413, "invalid_request_error", message, code="request_too_large")


def draining() -> ApiError:
    """Return 503 while the server shuts down."""
    message = (
        "server: expected to take requests, but it is shutting down. Try again, at another replica if there is one."
    )
    return ApiError(503, "service_unavailable_error", message, code="shutting_down", retry_after_s=5)


def cut_off() -> ApiError:
    """Return 503 for a request that outlived the time to shut down."""
    message = "server: the request was ended because the server shut down before it was finished. Send it again."
    return ApiError(503, "service_unavailable_error", message, code="shutting_down", retry_after_s=5)


def failed_row() -> ApiError:
    """Return 500 for a request that the engine ended with an error."""
    message = "generation: the engine failed while computing this request; others are not affected. The log says why."
    return ApiError(500, "internal_error", message, code="generation_failed")


def aborted() -> ApiError:
    """Return 503 for a request that the engine gave up."""
    message = "generation: the engine ended this request before it was finished. Send it again."
    return ApiError(503, "service_unavailable_error", message, code="aborted", retry_after_s=1)


def internal() -> ApiError:
    """Return 500."""
    message = "server: an internal error; the log has it under the request id of this answer's x-request-id."
    return ApiError(500, "internal_error", message, code="internal_error")


def from_exception(error: Exception) -> ApiError:
    """Return what a client is told about an exception. Only messages of our own errors are passed on.

    Args:
        error: Anything; what is not one of ours is logged with its trace and becomes 500.
    """
    match error:
        case ApiError():
            return error
        case OverloadedError():
            return ApiError(
                429, "rate_limit_error", str(error), code="overloaded", retry_after_s=max(error.retry_after_s, 1.0)
            )
        case EngineDeadError():
            return ApiError(503, "service_unavailable_error", str(error), code="engine_unavailable", retry_after_s=1)
        case RequestError() | CapacityError():
            return invalid(str(error))
    _log.error("request failed", exc_info=error)
    return internal()
