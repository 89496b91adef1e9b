"""Parts of tensors: read as if the tensor had been read and cut, no more bytes than that takes, each one checked."""

import os

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.errors import PlanError
from quire.ops.spec import spec_of
from quire.plan.storage.stored_weights import StoredTensor, StoredWeights, save_weights
from quire.plan.storage.tensor_file import TensorFile, file_order, write_tensor_file
from quire.plan.weight_source import TensorWeights, cut, read_part, whole

SHAPES = {"wide": (6, 5000), "tall": (700, 30), "cube": (4, 6, 10), "flat": (50,), "half": (8, 3001)}
TENSORS = {name: torch.randn(shape).to(torch.bfloat16 if name == "half" else torch.float32)
           for name, shape in SHAPES.items()}  # fmt: skip


@pytest.fixture
def read_bytes(monkeypatch):
    """Counts the bytes that files are asked for."""
    found, real = [], os.preadv

    def preadv(handle, buffers, offset):
        found.append(sum(len(buffer) for buffer in buffers))
        return real(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "t.safetensors"
    specs = {name: spec_of(tensor) for name, tensor in TENSORS.items()}
    write_tensor_file(path, specs, ((name, TENSORS[name]) for name in file_order(specs)))
    return TensorFile(path)


@st.composite
def parts(draw):
    name = draw(st.sampled_from(sorted(SHAPES)))
    part = []
    for size in SHAPES[name]:
        bounds = sorted(draw(st.sets(st.integers(0, size), min_size=2, max_size=6)))
        part.append(tuple(zip(bounds[::2], bounds[1::2], strict=False)) if draw(st.booleans()) else ((0, size),))
    return name, tuple(part)


@settings(deadline=None, max_examples=100)
@given(parts())
def test_a_part_is_what_is_cut_from_the_tensor(file, wanted):
    name, part = wanted
    expected = TENSORS[name]
    for dim, ranges in enumerate(part):
        expected = torch.cat([expected.narrow(dim, a, b - a) for a, b in ranges], dim)
    assert torch.equal(cut(TENSORS[name], part), expected)
    assert torch.equal(file.read_part(name, part), expected) and file.read_part(name, part).is_contiguous()


def test_no_more_bytes_than_that_takes(file, read_bytes):
    file.read_part("tall", (((3, 10), (50, 53)), ((0, 30),)))
    assert sum(read_bytes) == 10 * 30 * 4
    read_bytes.clear()
    file.read_part("wide", (((1, 4),), ((0, 2000), (3000, 4500))))
    assert sum(read_bytes) == 3 * 3500 * 4 and max(read_bytes) == 2000 * 4
    read_bytes.clear()
    file.read_part("wide", (((1, 4),), ((7, 9),)))  # less than a page: rows are read whole
    assert sum(read_bytes) == 3 * 5000 * 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A matrix of 2 MiB, a small one and a vector, saved as a plan's weights."""
    root = tmp_path_factory.mktemp("saved")
    tensors = {"large": torch.randn(1024, 512), "small": torch.randn(64, 32), "vector": torch.randn(300_000)}
    declared = {name: spec_of(tensor) for name, tensor in tensors.items()}
    return root, tensors, declared, save_weights(root, declared, TensorWeights(tensors), copy=True)


def rank_part(shape, dim, rank, size):
    each = shape[dim] // size
    return tuple(((rank * each, (rank + 1) * each),) if i == dim else ((0, n),) for i, n in enumerate(shape))


@pytest.mark.parametrize("dim", [0, 1])
def test_each_rank_reads_its_share(saved, dim, read_bytes):
    root, tensors, declared, entries = saved
    weights = StoredWeights(root, entries, declared, "")
    for size in (2, 4, 8, 16):
        for rank in range(size):
            part = rank_part((1024, 512), dim, rank, size)
            read_bytes.clear()
            assert torch.equal(read_part(weights, "large", part), cut(tensors["large"], part))
            # Column pieces of less than a page share their pages with others.
            assert sum(read_bytes) == (2**21 // size if dim == 0 else 2**21)
    read_bytes.clear()
    part = (((100, 200), (500, 510)), ((0, 512),))  # between blocks of 64 rows: 64..256 and 448..512
    assert torch.equal(read_part(weights, "large", part), cut(tensors["large"], part))
    assert sum(read_bytes) == (192 + 64) * 512 * 4


def damaged(saved, tmp_path, name, index):
    """Sources of the saved tensors, one bit of one element of one of them changed."""
    root, tensors, declared, entries = saved
    data = bytearray((root / "weights.safetensors").read_bytes())
    start = data.index(tensors[name].numpy().tobytes()[:64])
    data[start + 4 * index] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(data)
    plain = {name: StoredTensor(entry.hash) for name, entry in entries.items()}
    return StoredWeights(tmp_path, entries, declared, "hint"), StoredWeights(tmp_path, plain, declared, "hint")


@pytest.mark.parametrize(("dim", "block"), [(0, 8), (1, 12)])
def test_changed_bytes_that_are_used_are_found(saved, tmp_path, dim, block):
    row, column = 517, 400  # block 8 of 16 of the rows, block 12 of the columns
    weights, plain = damaged(saved, tmp_path, "large", row * 512 + column)
    for rank in range(4):
        part = rank_part((1024, 512), dim, rank, 4)
        if rank == block // 4:
            with pytest.raises(PlanError, match=rf"'large': expected hash \w+ of block {block}, got .*hint"):
                read_part(weights, "large", part)
        else:
            assert torch.equal(read_part(weights, "large", part), cut(saved[1]["large"], part))
        with pytest.raises(PlanError, match="'large': expected hash"):  # saved without hashes of blocks
            read_part(plain, "large", part)


@pytest.mark.parametrize("name", ["small", "vector"])
def test_what_has_no_blocks_is_checked_whole(saved, tmp_path, name):
    weights, _ = damaged(saved, tmp_path, name, 5)
    shape = saved[1][name].shape
    with pytest.raises(PlanError, match=f"{name!r}: expected hash"):
        read_part(weights, name, rank_part(shape, 0, 1, 2))


def test_entries_of_small_tensors_stay_short(saved):
    entries = saved[3]
    assert set(msgspec.to_builtins(entries["small"])) == {"hash"}
    assert len(entries["large"].rows) == len(entries["large"].columns) == 16 * 32
    assert read_part(TensorWeights({"x": torch.ones(3)}), "x", whole(spec_of(torch.ones(3)))).shape == (3,)
