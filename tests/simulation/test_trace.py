"""Traces in their forms, and what is said of wrong ones."""

import json

import pytest

from quire.core.errors import ConfigError
from quire.simulation.load import PlannedRequest, SyntheticLoad, plan_load, share_prefixes
from quire.simulation.trace import read_trace


def words(text):
    return len(text.split())


def written(tmp_path, *records, text=None):
    path = tmp_path / "trace.jsonl"
    path.write_text(text if text is not None else "\n".join(map(json.dumps, records)) + "\n")
    return path


def test_arrival_prompt_and_output(tmp_path):
    path = written(
        tmp_path,
        {"arrival_s": 10.5, "prompt_tokens": 7, "output_tokens": 3},
        {"arrival_s": 10.0, "num_prompt_tokens": 8, "completion_tokens": 4, "model": "m"},
    )
    found = read_trace(path, SyntheticLoad(), words)
    assert found == [PlannedRequest(0.5, 7, 3), PlannedRequest(0.0, 8, 4)]  # from the first that comes


def test_mooncake_has_milliseconds_and_names_of_blocks(tmp_path):
    path = written(tmp_path, {"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]})
    assert read_trace(path, SyntheticLoad(), words) == [PlannedRequest(0.0, 600, 52, ((46, 512), (47, 512)))]


def test_conversations_are_counted_and_come_like_a_synthetic_load(tmp_path):
    turns = [{"from": "human", "value": "how are you"}, {"from": "gpt", "value": "fine thanks"},
             {"from": "human", "value": "good"}]  # fmt: skip
    path = written(tmp_path, text=json.dumps([{"id": str(i), "conversations": turns} for i in range(5)]))
    load = SyntheticLoad(rate=3.0, num_requests=5, seed=4)
    found = read_trace(path, load, words)
    assert [item[1:3] for item in found] == [(3, 2)] * 5
    assert [item.due_s for item in found] == [item.due_s for item in plan_load(load, None)]


def test_prompts_as_text(tmp_path):
    path = written(tmp_path, {"prompt": "one two three four", "output_tokens": 9})
    assert [item[1:3] for item in read_trace(path, SyntheticLoad(), words)] == [(4, 9)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got no record"),
        ("{", "expected JSON lines or one JSON list"),
        ("[1]", "none in record 1"),
        ('{"arrival_s": 1, "prompt_tokens": 3}', "record 1: expected one of output_tokens"),
        ('{"prompt_tokens": 0, "output_tokens": 1}', "record 1: expected one of prompt_tokens.* got 0"),
        ('{"prompt_tokens": "9", "output_tokens": 1}', "got '9'"),
        ('{"arrival_s": 1, "prompt_tokens": 3, "output_tokens": 1}\n{"prompt_tokens": 3, "output_tokens": 1}',
         "none in record 2"),
        ('{"prompt_tokens": 3, "output_tokens": 1, "hash_ids": [-1]}', "hash_ids: expected"),
        ('{"prompt_tokens": 3, "output_tokens": 1, "hash_ids": [1.5]}', "hash_ids: expected"),
        ('{"conversations": [], "output_tokens": 1}', "expected one of prompt_tokens"),
    ],
)  # fmt: skip
def test_wrong_traces_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read_trace(written(tmp_path, text=text), SyntheticLoad(), words)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="trace: expected a file"):
        read_trace(tmp_path / "none", SyntheticLoad(), words)


def test_prefixes_are_drawn_and_no_longer_than_prompts():
    planned = plan_load(SyntheticLoad(num_requests=50, input_len=20), None)
    shared = share_prefixes(planned, 3, 12, seed=1)
    assert {item.begins_with[0][0] for item in shared} == {0, 1, 2}
    assert {item.begins_with[0][1] for item in shared} == {12}
    assert share_prefixes(planned, 3, 100, seed=1)[0].begins_with[0][1] == 20
    assert share_prefixes(planned, 0, 12, seed=1) == planned
    assert shared == share_prefixes(planned, 3, 12, seed=1) != share_prefixes(planned, 3, 12, seed=2)
