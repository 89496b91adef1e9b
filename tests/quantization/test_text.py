"""Calibration text: cut the same way every time, nothing both calibrated and evaluated on, clear errors."""

import pytest

from quire.core.errors import ConfigError
from quire.quantization.text import random_samples, read_samples


def encode(text):
    return list(text.encode())


def test_built_in_text_is_cut_without_overlap():
    found = read_samples(None, encode, num_samples=40, length=512, first_ids=(0,))
    assert found == read_samples(None, encode, num_samples=40, length=512, first_ids=(0,)), "deterministic"
    assert len(found.calibration) == 40 and found.origin == "built-in text"
    assert {len(sample) for sample in (*found.calibration, *found.held_out)} == {512}
    assert all(sample[0] == 0 for sample in found.calibration)
    held_out = {tuple(sample) for sample in found.held_out}
    assert held_out and held_out.isdisjoint(map(tuple, found.calibration))


def test_text_and_jsonl_files_give_the_same_samples(tmp_path):
    words = [f"line {i} of a text that is long enough" for i in range(60)]
    (tmp_path / "a.txt").write_text("".join(words))
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"text": "{word}", "id": {i}}}' for i, word in enumerate(words)))
    text, jsonl = (
        read_samples(str(tmp_path / name), encode, num_samples=9, length=64) for name in ("a.txt", "a.jsonl")
    )
    assert text.calibration == jsonl.calibration and text.held_out == jsonl.held_out
    assert len(text.calibration) == 9


def test_a_short_text_gives_short_samples(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 600)
    found = read_samples(str(tmp_path / "a.txt"), encode, num_samples=100, length=512)
    assert {len(sample) for sample in found.calibration} == {50} and len(found.held_out) == 2


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", b"short", "at least a few hundred tokens"),
        ("a.txt", b"\xff\xfe", "expected UTF-8 text"),
        ("a.jsonl", b'{"text": "fine"}\n{"prompt": 1}', 'expected {"text": ...} in line 2'),
        ("a.jsonl", b'{"text": "fine"}\n{"text', "in line 2"),
        (None, None, "expected a readable text file"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, name, content, expected):
    path = tmp_path / (name or "missing.txt")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        read_samples(str(path), encode, num_samples=8, length=64)


def test_random_samples_are_in_the_vocabulary_and_seeded():
    first, second, other = (random_samples(97, num_samples=5, length=33, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert len(first.calibration) == 5 and first.held_out
    assert all(0 <= token < 97 for sample in (*first.calibration, *first.held_out) for token in sample)
