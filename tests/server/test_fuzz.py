"""Requests made from the server's own OpenAPI document, valid ones and invalid ones: no 5xx, no hang, no surprise."""

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quire.server.app import all_endpoints
from quire.server.openapi import document

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
HANG_S = 30


def operations() -> list:
    """All operations; fields that name a model name the one that is served, or every case would end there."""
    made = msgspec.json.decode(msgspec.json.encode(document(all_endpoints())))
    for schema in made["components"]["schemas"].values():
        if "model" in schema.get("properties", {}) and "Request" in schema["title"]:
            schema["properties"]["model"] = {"enum": ["quire-tiny", None]}
    return [result.ok() for result in schemathesis.openapi.from_dict(made).get_all_operations()]


OPERATIONS = operations()
NUM_BODIES = sum(operation.method == "post" for operation in OPERATIONS)


def fuzz(server, operation, mode: GenerationMode, num_cases: int) -> int:
    """Send cases of an operation; returns how many were sent."""
    num_sent = 0

    @settings(max_examples=num_cases, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        nonlocal num_sent
        num_sent += 1
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=HANG_S)

    check()
    return num_sent


def cases(most: int) -> list:
    """Operations and modes: most cases for those with a body; the others have hardly anything to vary."""
    with_body = [operation for operation in OPERATIONS if operation.method == "post"]
    chosen = [(operation, mode, most) for operation in with_body for mode in MODES]
    chosen += [(operation, GenerationMode.POSITIVE, 3) for operation in OPERATIONS if operation not in with_body]
    return [pytest.param(*case, id=f"{case[0].label} {case[1].value}") for case in chosen]


@pytest.mark.parametrize("operation, mode, num_cases", cases(-(-300 // (2 * NUM_BODIES))))
def test_cases_of_the_document(server, operation, mode, num_cases):
    assert fuzz(server, operation, mode, num_cases) > 0


@pytest.mark.slow
@pytest.mark.parametrize("operation, mode, num_cases", cases(-(-5000 // (2 * NUM_BODIES))))
def test_many_cases_of_the_document(server, operation, mode, num_cases):
    assert fuzz(server, operation, mode, num_cases) > 0
