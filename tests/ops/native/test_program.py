"""Programs of kernels: sizes said at each run, views, and tensors that share one piece of memory."""

from itertools import pairwise

import pytest
import torch

from quire.ops.native.library import DTYPES, library, operand

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")

F32 = DTYPES.index(torch.float32)
ROWS = (1, 0)  # one times the first symbolic size


def chain(length: int, width: int):
    """Copy an input through `length` registers to an output."""
    program = library().Program(library().Workspace())
    first, last = program.outside(F32, [ROWS, (width, -1)]), program.outside(F32, [ROWS, (width, -1)])
    registers = [first, *(program.result(F32, [ROWS, (width, -1)]) for _ in range(length)), last]
    for source, target in pairwise(registers):
        program.call("copy", [target, source], [])
    return program


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_program_runs_for_all_sizes(threads):
    program = chain(5, 7)
    for rows in (3, 1, 200, 0, 3):
        x, out = torch.randn(rows, 7), torch.zeros(rows, 7)
        program.run([rows], [x.data_ptr(), out.data_ptr()], threads)
        assert torch.equal(x, out)


def test_memory_is_used_again_once_nobody_reads_it():
    assert chain(2, 16).arena_bytes([64]) == chain(9, 16).arena_bytes([64]) == 2 * 64 * 16 * 4


def test_what_is_still_read_is_not_overwritten():
    program = library().Program(library().Workspace())
    x, y, out = (program.outside(F32, [ROWS, (16, -1)]) for _ in range(3))
    kept, other, third = (program.result(F32, [ROWS, (16, -1)]) for _ in range(3))
    for target, source in ((kept, x), (other, y), (third, other), (y, third), (out, kept)):
        program.call("copy", [target, source], [])
    a, b, c = torch.randn(5, 16), torch.randn(5, 16), torch.zeros(5, 16)
    program.run([5], [t.data_ptr() for t in (a, b, c)], 2)
    assert torch.equal(a, c)


def test_views_have_their_own_place_and_shape():
    program = library().Program(library().Workspace())
    x, out = program.outside(F32, [ROWS, (8, -1)]), program.outside(F32, [ROWS, (4, -1)])
    held = program.result(F32, [ROWS, (8, -1)])
    second = program.view(held, 4, F32, [(1, -1), (4, -1)], [8, 1])
    constant = torch.arange(8.0).view(1, 8)
    program.call("copy", [held, program.constant(operand(constant))], [])
    program.call("copy", [out, second], [])
    given, made = torch.zeros(1, 8), torch.zeros(1, 4)
    program.run([1], [given.data_ptr(), made.data_ptr()], 1)
    assert made.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert x == 0


def test_wrong_calls_are_refused():
    program = chain(1, 4)
    with pytest.raises(ValueError, match="number of addresses"):
        program.run([1], [], 1)
    with pytest.raises(ValueError, match="expected a known name"):
        program.call("no_such_kernel", [], [])
    with pytest.raises(ValueError, match="wrong number"):
        program.call("copy", [0], [])


def test_programs_share_a_workspace_that_grows():
    workspace = library().Workspace()
    programs = []
    for width in (3, 400):
        program = library().Program(workspace)
        first, last = program.outside(F32, [ROWS, (width, -1)]), program.outside(F32, [ROWS, (width, -1)])
        between = program.result(F32, [ROWS, (width, -1)])
        program.call("copy", [between, first], [])
        program.call("copy", [last, between], [])
        programs.append((program, width))
    for rows in (2, 90, 5):
        for program, width in (*programs, *programs):
            x, out = torch.randn(rows, width), torch.zeros(rows, width)
            program.run([rows], [x.data_ptr(), out.data_ptr()], 2)
            assert torch.equal(x, out)
    assert workspace.num_bytes() >= 90 * 400 * 4


def test_calls_are_counted_by_kernel_and_width_while_someone_measures():
    program, x, out = chain(3, 7), torch.randn(2, 7), torch.zeros(2, 7)
    library().start_recording()
    for _ in range(2):
        program.run([2], [x.data_ptr(), out.data_ptr()], 2)
    found = library().stop_recording()
    assert [(name, calls) for name, (calls, _) in found.items()] == [("copy 7 7", 8)]
    assert found["copy 7 7"][1] > 0
    program.run([2], [x.data_ptr(), out.data_ptr()], 2)
    assert library().stop_recording() == {}
