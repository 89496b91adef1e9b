"""Checkpoints on disk: one file, shards, the legacy format; and every way in which they can be broken."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec
from quire.weights.checkpoint import Checkpoint
from quire.weights.open import open_weights

Tensors = dict[str, torch.Tensor]


def _tensors() -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return {
        "a.weight": torch.randn(7, 5, generator=generator),
        "a.bias": torch.randn(7, generator=generator).bfloat16(),
        "b.weight": torch.randn(3, 7, 2, generator=generator).half(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep converted files inside the test's own folder."""
    monkeypatch.setenv("QUIRE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir(exist_ok=True)
    return directory


def _shard(directory: Path, tensors: Tensors, suffix: str, save: Callable[[Tensors, Path], None]) -> None:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"{stem}-{i % 2 + 1:05d}-of-00002.{suffix}"
    for shard in sorted(set(weight_map.values())):
        save({name: tensors[name] for name in tensors if weight_map[name] == shard}, directory / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _assert_same(source: Checkpoint, tensors: Tensors) -> None:
    assert sorted(source.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        got = source.read(name)
        assert source.spec(name) == TensorSpec(tuple(tensor.shape), tensor.dtype)
        assert torch.equal(got, tensor) and got.dtype == tensor.dtype
        assert got.is_contiguous() and (got.data_ptr() % 64 == 0 or not got.numel())


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "bin-sharded", "bin-before-1.6"])
def test_every_layout_gives_the_same_tensors(layout: str, tmp_path: Path) -> None:
    directory, tensors = _model(tmp_path), _tensors()
    if layout == "single":
        save_file(tensors, directory / "model.safetensors")
    elif layout == "sharded":
        _shard(directory, tensors, "safetensors", lambda part, path: save_file(part, path))
    elif layout == "bin-sharded":
        _shard(directory, tensors, "bin", lambda part, path: torch.save(part, path))
    else:
        is_zip = layout == "bin"
        torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    _assert_same(Checkpoint(directory), tensors)


def test_safetensors_go_before_the_legacy_format(tmp_path: Path, cache: Path) -> None:
    directory, tensors = _model(tmp_path), _tensors()
    save_file(tensors, directory / "model.safetensors")
    (directory / "pytorch_model.bin").write_bytes(b"never read")
    _assert_same(Checkpoint(directory), tensors)
    assert not cache.exists()


def test_legacy_is_converted_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, tensors = _model(tmp_path), _tensors()
    path = directory / "pytorch_model.bin"
    torch.save(tensors, path)
    with caplog.at_level(logging.INFO, "quire"):
        for _ in range(2):
            _assert_same(Checkpoint(directory), tensors)
        assert caplog.text.count("converting") == 1
        changed = {**tensors, "scalar": torch.tensor(7.0)}
        torch.save(changed, path)
        os.utime(path, ns=(1, 1))
        _assert_same(Checkpoint(directory), changed)
    assert caplog.text.count("converting") == 2
    assert [file.suffix for file in (cache / "converted").iterdir()] == [".safetensors"] * 2


def test_legacy_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    directory, base = _model(tmp_path), torch.arange(12.0).reshape(3, 4)
    tensors = {"embed": base, "lm_head": base, "transposed": base.t(), "row": base[1], "grad": base.clone()}
    tensors["grad"] = torch.nn.Parameter(tensors["grad"])
    torch.save(tensors, directory / "pytorch_model.bin")
    _assert_same(Checkpoint(directory), {name: tensor.detach().contiguous() for name, tensor in tensors.items()})


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "content",
    [{"a": _Payload()}, [torch.ones(2)], {"a": 3}, {3: torch.ones(2)}, {"a": torch.ones(2).to_sparse()}],
    ids=["code", "list", "number", "unnamed", "sparse"],
)
def test_legacy_with_anything_but_tensors_is_refused(
    content: object, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = _model(tmp_path)
    torch.save(content, directory / "pytorch_model.bin")
    with pytest.raises(PlanError, match=r"pytorch_model\.bin"):
        Checkpoint(directory)
    assert not (tmp_path / "pwned").exists() and not list(cache.glob("converted/*"))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_damaged_legacy_is_refused_and_leaves_nothing(keep: int, tmp_path: Path, cache: Path) -> None:
    path = _model(tmp_path) / "pytorch_model.bin"
    torch.save(_tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PlanError, match=r"pytorch_model\.bin"):
        Checkpoint(path.parent)
    assert not list(cache.glob("converted/*"))


def test_unwritable_cache_is_explained(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file in the way")
    directory = _model(tmp_path)
    torch.save(_tensors(), directory / "pytorch_model.bin")
    with pytest.raises(PlanError, match="QUIRE_CACHE_DIR"):
        Checkpoint(directory)


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"model\.safetensors, model\.safetensors\.index\.json, pytorch_model\.bin"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 64])
def test_truncated_file_is_refused_before_any_read(cut: int, tmp_path: Path) -> None:
    path = _model(tmp_path) / "model.safetensors"
    save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(PlanError, match=r"model\.safetensors.*bytes"):
        Checkpoint(path.parent)


def test_file_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = _model(tmp_path) / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    source = Checkpoint(path.parent)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(PlanError, match=r"model\.safetensors.*256 bytes.*'a'.*255"):
        source.read("a")


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("{", "JSON"),
        ("[]", "weight_map"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {}}', "empty"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "beside"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "beside"),
        ('{"weight_map": {"a": "x\\u0000y"}}', "beside"),
        ('{"weight_map": {"a": "missing.safetensors"}}', r"missing\.safetensors"),
        ("\xff\xfe", "JSON"),
        ('{"weight_map":' * 5000, "JSON"),
    ],
)
def test_damaged_index_is_refused(index: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(PlanError, match=named):
        Checkpoint(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    directory, tensors = _model(tmp_path), _tensors()
    _shard(directory, tensors, "safetensors", lambda part, path: save_file(part, path))
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"lost\.weight"):
        Checkpoint(directory)
    save_file(tensors, directory / "model-00001-of-00002.safetensors")
    with pytest.raises(PlanError, match="one shard"):
        Checkpoint(directory)


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        _file({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        _file({"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        _file({"a": {"dtype": "f32", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        _file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"00000000"),
        _file({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
        _file(b"{", b""),
        _file(b'{"a":' * 5000, b""),
        (1 << 62).to_bytes(8, "little") + b"{}",
        b"",
    ],
)
def test_contradicting_headers_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PlanError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_changed_header_byte_gives_tensors_or_a_plan_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    path = directory / "model.safetensors"
    save_file(_tensors(), path)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content)
    try:
        source = Checkpoint(directory)
        for name in source.names():
            source.read(name)
    except PlanError as error:
        assert str(path) in str(error)


DECLARED = {"a.weight": TensorSpec((7, 5), torch.float32), "a.bias": TensorSpec((7,), torch.float32)}


def _canonical(name: str) -> str | None:
    return None if name.startswith("ignored.") else name.removeprefix("model.")


def _open(tmp_path: Path, tensors: Tensors, declared: dict[str, TensorSpec] | None = None) -> Tensors:
    directory = _model(tmp_path)
    save_file(tensors, directory / "model.safetensors")
    source = open_weights(directory, declared or DECLARED, _canonical)
    return {name: source.read(name) for name in source.names()}


def test_names_are_mapped_and_values_cast(tmp_path: Path) -> None:
    weight, bias = torch.randn(7, 5), torch.randn(7).bfloat16()
    got = _open(tmp_path, {"model.a.weight": weight, "a.bias": bias, "ignored.mask": torch.ones(3, dtype=torch.uint8)})
    assert list(got) == list(DECLARED)
    assert torch.equal(got["a.weight"], weight) and torch.equal(got["a.bias"], bias.float())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"a.bias": None}, r"tensors missing \(1\): 'a\.bias' float32\[7\]"),
        ({"c.weight": torch.ones(2)}, r"tensors not expected \(1\): 'c\.weight' float32\[2\]"),
        ({"a.bias": torch.ones(8)}, r"'a\.bias' in model\.safetensors: expected float32\[7\], got float32\[8\]"),
        ({"a.bias": torch.ones(7, dtype=torch.int8)}, r"expected float32\[7\], got int8\[7\]"),
        ({"model.a.bias": torch.ones(7)}, r"one tensor for 'a\.bias'"),
        ({f"c.{i}": torch.ones(1) for i in range(9)}, r"tensors not expected \(9\).*\.\.\."),
    ],
)
def test_what_does_not_fit_is_named_before_reading(
    changes: dict[str, torch.Tensor | None], named: str, tmp_path: Path
) -> None:
    tensors = {"a.weight": torch.ones(7, 5), "a.bias": torch.ones(7), **changes}
    with pytest.raises(PlanError, match=named):
        _open(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_float16_overflow_is_not_silent(tmp_path: Path) -> None:
    declared = {"a": TensorSpec((2,), torch.float16)}
    kept = _open(tmp_path, {"a": torch.tensor([60000.0, float("inf")])}, declared)["a"]
    assert kept.isinf().tolist() == [False, True]
    with pytest.raises(PlanError, match=r"'a'.*float16.*70000.*bfloat16"):
        _open(tmp_path, {"a": torch.tensor([1.0, 70000.0])}, declared)


STREAM = """
import sys
from pathlib import Path
from quire.weights.checkpoint import Checkpoint
source = Checkpoint(Path(sys.argv[1]))
source.read("small")
# Unlike getrusage's peak, which a child inherits from its parent, this one starts anew with the process.
peak = lambda: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
for name in source.names():
    tensor = source.read(name)
    del tensor
print(peak() - before)
"""


def test_streaming_peaks_at_the_largest_tensor(tmp_path: Path) -> None:
    sizes = {"small": 16, **{f"layer.{i}": 8 << 20 for i in range(12)}, "largest": 32 << 20}
    header, end = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(header))
    os.truncate(path, path.stat().st_size + end)  # a hole: zeros that take no room on disk
    run = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=True, env=_environment()
    )
    assert int(run.stdout) < (32 << 20) + (6 << 20)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
