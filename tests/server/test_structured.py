"""`response_format` as clients send it."""

import json

import pytest

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams
from quire.server.structured import structured_outputs_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_what_constrains_nothing():
    assert structured_outputs_of(None) is None and structured_outputs_of({"type": "text"}) is None


def test_objects_and_schemas():
    assert structured_outputs_of({"type": "json_object"}) == StructuredOutputsParams(json_object=True)
    for strict in ({}, {"strict": None}, {"strict": True}, {"strict": False}):
        made = structured_outputs_of({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **strict}})
        assert made is not None and json.loads(str(made.json)) == SCHEMA


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("json_object", "response_format: expected an object, got str"),
        ([], "got list"),
        ({}, "response_format.type: expected text, json_object or json_schema, got 'None'"),
        ({"type": "xml"}, "got 'xml'"),
        ({"type": "json_schema"}, "json_schema.schema: expected a JSON schema"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "strict: expected true or false"),
        ({"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}, "at most 65536"),
    ],
)
def test_other_forms_are_refused(given, message):
    with pytest.raises(RequestError, match=message):
        structured_outputs_of(given)
