"""Liveness by hand: what is a part of what, when it is free, and what nobody uses."""

import pytest
import torch

from quire.core.errors import ShapeError
from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.ops.cpu import table
from quire.ops.native.library import library
from quire.ops.registry import OPS
from quire.plan.liveness import step_memory
from quire.plan.programs import ALIASES

N = 1000
ROW = 4 * N  # bytes of a column of N float32


@pytest.fixture
def no_kernels(monkeypatch):
    """Let torch compute, as where nothing was compiled: each result is memory of its own."""
    monkeypatch.setattr(table, "TACTICS", tuple(one for one in table.TACTICS if one.kernel is None))


def network(define):
    made = Network("by hand")
    with net_guard(made):
        define(Tensor("x", "float32", ("num_tokens", 8)))
    return made


def peak(define):
    return step_memory(network(define), {"num_tokens": N}).peak - 8 * ROW  # beside the input


def test_results_live_to_their_last_use(no_kernels):
    def chain(x):
        y = F.relu(x)
        z = F.relu(y)
        F.relu(z).mark_output("out")

    def kept(x):
        y = F.relu(x)
        z = F.relu(F.relu(F.relu(y)))
        F.add(y, z).mark_output("out")

    assert peak(chain) == 2 * 8 * ROW
    assert peak(kept) == 3 * 8 * ROW


def test_parts_keep_the_whole_and_take_nothing(no_kernels):
    def parts(x):
        y = F.relu(x)
        a, b = F.slice(y, 1, 0, 1), F.slice(y.view(-1, 2, 4), 1, 1, 2)
        c = F.relu(F.relu(a))  # 8 columns of y stay for b, though a needs one of them
        F.relu(b).mark_output("b")
        c.mark_output("c")

    assert peak(parts) == (8 + 1 + 4) * ROW


def test_several_results_are_pieces_of_their_own(no_kernels):
    def norm(x):
        normed, total = F.add_rms_norm(x, x, F.full([8], 1.0, "float32"), 1e-5)
        y = F.relu(F.relu(normed))  # while total waits
        F.add(total, y).mark_output("out")

    def alone(x):
        normed, _ = F.add_rms_norm(x, x, F.full([8], 1.0, "float32"), 1e-5)
        F.relu(F.relu(normed)).mark_output("out")

    assert peak(norm) == 3 * 8 * ROW  # total, and two of normed, its relu and that one's
    assert peak(alone) == 3 * 8 * ROW, "what nobody uses stays, as in the executor's registers"


def test_outputs_are_left(no_kernels):
    def both(x):
        y = F.relu(x)
        y.mark_output("y")
        F.relu(y).mark_output("z")

    found = step_memory(network(both), {"num_tokens": N})
    assert found.left == (8 + 16) * ROW and found.inputs == 8 * ROW and found.largest == "relu_1"


@pytest.mark.skipif(library() is None, reason="no compiled kernels")
@pytest.mark.parametrize("length", [3, 4, 9])
def test_what_lies_between_compiled_kernels_is_one_arena_that_is_kept(length):
    def chain(x):
        for _ in range(length):
            x = F.relu(x)
        x.mark_output("out")

    found = step_memory(network(chain), {"num_tokens": N})
    assert found.left - found.inputs - 8 * ROW == 0 and found.inputs - 8 * ROW == -(-2 * 8 * ROW // 4096) * 4096


def test_a_size_without_a_number_is_named():
    with pytest.raises(ShapeError, match=r"every size of float32\[num_tokens, 8\], got none for 'num_tokens'"):
        step_memory(network(lambda x: F.relu(x).mark_output("y")), {"num_seqs": 3})


PARTS = {
    "view": {"x": torch.zeros(4, 6), "shape": [-1, 3]},
    "slice": {"x": torch.zeros(4, 6), "dim": 1, "start": 2, "stop": 4},
    "split": {"x": torch.zeros(4, 6), "sizes": 3, "dim": 1},
    "item": {"results": (torch.zeros(3), torch.zeros(4)), "index": 1},
    "permute": {"x": torch.zeros(4, 6), "dims": [1, 0]},
    "transpose": {"x": torch.zeros(4, 6), "dim0": 0, "dim1": 1},
    "concat": {"tensors": [torch.zeros(4, 6)], "dim": 0},
    "index_select": {"x": torch.zeros(4, 6), "index": torch.arange(4), "dim": 0},
    "gather": {"x": torch.zeros(4, 6), "dim": 1, "index": torch.zeros(4, 6, dtype=torch.int64)},
    "topk": {"x": torch.zeros(4, 6), "k": 6, "dim": -1},
    "argmax": {"x": torch.zeros(4, 6), "dim": -1, "keepdim": False},
    "argsort": {"keys": torch.arange(4)},
    "expand": {"x": torch.zeros(4, 1), "shape": [4, 6]},
    "cast": {"x": torch.zeros(4, 6), "dtype": "bfloat16"},
}
"""Arguments of every op of `ops.layout` but those without a tensor."""


def tensors_of(value):
    return [one for one in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(one, torch.Tensor)]


@pytest.mark.parametrize("name", PARTS)
def test_the_table_of_parts_is_right(name):
    arguments = PARTS[name]
    given = {one.untyped_storage().data_ptr() for value in arguments.values() for one in tensors_of(value)}
    results = tensors_of(OPS[name].reference(**arguments))
    is_part = all(one.untyped_storage().data_ptr() in given for one in results)
    assert is_part == (name in ALIASES)


def test_every_op_of_layout_is_looked_at():
    layout = {name for name, op in OPS.items() if op.reference.__module__ == "quire.ops.layout"}
    assert layout - set(PARTS) == {"full"}
