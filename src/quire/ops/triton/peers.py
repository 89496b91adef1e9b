"""Exchanges of ranks in one kernel: each writes its rows where all read, says so, waits, and adds or copies them.

For few rows latency is all: this takes one trip between GPUs, where a library's kernels take two or more. Nobody waits
at the end: a program's slots take turns, and when it writes to one again, all ranks have read what it held two turns
ago, since they have said that their turn after it is there, and kernels of a rank run one after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.distributed.tensors.communicator import current
from quire.distributed.tensors.peers import FLAG_BYTES, NUM_SLOTS, SLOT_BYTES, PeerMemory
from quire.ops.collective import exchange
from quire.ops.triton.elementwise import cast, round_to, tiles_of
from quire.ops.triton.launch import let_next_start, overlap, wait_for_last
from quire.ops.triton.norm import add_rms_norm, normed

_FLAG_BYTES, _NUM_SLOTS, _SLOT_BYTES = tl.constexpr(FLAG_BYTES), tl.constexpr(NUM_SLOTS), tl.constexpr(SLOT_BYTES)


_LEAST_CHUNK = 2048  # values of a row in one program: two loads of 16 bytes a thread in bfloat16


@triton.jit
def _slot(buffer, turn, program, dtype: tl.constexpr):
    """Return where a program's rows of a turn begin in a rank's buffer."""
    place = _FLAG_BYTES + ((turn & 1) * _NUM_SLOTS + program).to(tl.int64) * _SLOT_BYTES
    return tl.multiple_of((buffer + place).to(tl.pointer_type(dtype)), 16)


@triton.jit
def _exchange(addresses, rank, turn, program, WORLD: tl.constexpr):
    """Say that this program's rows are there, and wait for those of all ranks."""
    tl.debug_barrier()  # all threads have written before one of them says so
    for peer in range(WORLD):
        flags = tl.load(addresses + peer).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(flags + program * WORLD + rank, turn + 1, sem="release", scope="sys")
    flags = tl.load(addresses + rank).to(tl.pointer_type(tl.int32))
    for peer in range(WORLD):
        while tl.atomic_add(flags + program * WORLD + peer, 0, sem="acquire", scope="sys") - turn <= 0:
            pass
    tl.debug_barrier()


@triton.jit
def _summed(addresses, turn, program, place, kept, dtype: tl.constexpr, WORLD: tl.constexpr):
    """Return the sum over ranks in their order, rounded to `dtype` once, in float32."""
    total = tl.load(_slot(tl.load(addresses), turn, program, dtype) + place, kept, other=0.0).to(tl.float32)
    for peer in tl.static_range(1, WORLD):
        slot = _slot(tl.load(addresses + peer), turn, program, dtype)
        total += tl.load(slot + place, kept, other=0.0).to(tl.float32)
    return round_to(total, dtype)


@triton.jit(do_not_specialize=["num_rows", "rank"])
def _all_reduce_kernel(
    x, residual, weight, out, total, addresses, turns, eps, num_rows, rank,
    WORLD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    dtype: tl.constexpr = x.dtype.element_ty
    program = tl.program_id(0)
    slot_row = tl.arange(0, ROWS)[:, None]
    row = program * ROWS + slot_row
    block = tl.arange(0, BLOCK)[None, :]
    turn = tl.load(turns + program)
    mine = _slot(tl.load(addresses + rank), turn, program, dtype)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        kept = (row < num_rows) & (columns < WIDTH)
        tl.store(mine + slot_row * WIDTH + columns, tl.load(x + row * WIDTH + columns, kept, other=0.0), kept)
    _exchange(addresses, rank, turn, program, WORLD)
    tl.store(turns + program, turn + 1)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + block
        kept = (row < num_rows) & (columns < WIDTH)
        wide = _summed(addresses, turn, program, slot_row * WIDTH + columns, kept, dtype, WORLD)
        if residual is not None:
            wide = round_to(wide + tl.load(residual + row * WIDTH + columns, kept, other=0.0).to(tl.float32), dtype)
            squares += wide * wide
        tl.store(total + row * WIDTH + columns, cast(wide, dtype), kept)
    if residual is not None:
        mean = tl.sum(squares, 1, keep_dims=True)
        mean = tl.div_rn(mean, tl.full(mean.shape, WIDTH, tl.float32))
        root = tl.sqrt_rn(mean + eps)
        for start in range(0, WIDTH, BLOCK):
            columns = start + block
            kept = (row < num_rows) & (columns < WIDTH)
            wide = tl.load(total + row * WIDTH + columns, kept, other=0.0).to(tl.float32)  # by who wrote it
            tl.store(out + row * WIDTH + columns, cast(normed(wide, root, weight, columns, WIDTH), dtype), kept)


@triton.jit(do_not_specialize=["rank", "num_chunks"])
def _all_gather_kernel(
    x, out, addresses, turns, rank, num_chunks, size, width,
    WORLD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr,
):  # fmt: skip
    let_next_start(IS_OVERLAPPED)
    wait_for_last(IS_OVERLAPPED)
    dtype: tl.constexpr = x.dtype.element_ty
    program = tl.program_id(0)
    row, first = (program // num_chunks).to(tl.int64), program % num_chunks * CHUNK
    turn = tl.load(turns + program)
    mine = _slot(tl.load(addresses + rank), turn, program, dtype)
    for start in range(0, CHUNK, BLOCK):
        place = start + tl.arange(0, BLOCK)
        kept = first + place < size
        tl.store(mine + place, tl.load(x + row * size + first + place, kept), kept)
    _exchange(addresses, rank, turn, program, WORLD)
    tl.store(turns + program, turn + 1)
    for peer in range(WORLD):
        theirs = _slot(tl.load(addresses + peer), turn, program, dtype)
        begin = row * width + tl.minimum(peer * size, width - size) + first  # `ops.collective.exchange.piece_start`
        for start in range(0, CHUNK, BLOCK):
            place = start + tl.arange(0, BLOCK)
            kept = first + place < size
            tl.store(out + begin + place, tl.load(theirs + place, kept), kept)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, peers: PeerMemory) -> list[Tensor]:
    """Return the norm if there is a residual, and the sum."""
    width = x.shape[-1]
    results = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(1 if residual is None else 2)]
    grid, options = tiles_of(x, width)
    _all_reduce_kernel[grid](
        x, residual, weight, results[0], results[-1], peers.addresses, peers.turns, eps, x.numel() // width, peers.rank,
        WORLD=len(peers.addresses), **options, **overlap(x),
    )  # fmt: skip
    return results


def _peers_for(x: Tensor) -> PeerMemory | None:
    """Return the memory in which a tensor's rows are exchanged at once; None if there is none, or they are too many."""
    peers = current().peers
    if peers is None or not x.numel() or not x.is_contiguous():
        return None
    (num_programs,), options = tiles_of(x, x.shape[-1])
    fits = num_programs <= NUM_SLOTS and options["ROWS"] * x.shape[-1] * x.itemsize <= SLOT_BYTES
    return peers if fits else None


def all_reduce(x: Tensor) -> Tensor:
    """Return the sum over ranks; see `ops.collective.all_reduce`."""
    peers = _peers_for(x)
    return current().all_reduce(x) if peers is None else _launch(x, None, None, 0.0, peers)[0]


def all_gather(x: Tensor, width: int) -> Tensor:
    """Return the pieces of all ranks beside each other; see `ops.collective.all_gather`."""
    peers, size = current().peers, x.shape[-1]
    most = NUM_SLOTS // max(x.numel() // size, 1)  # programs of a row
    chunk = max(_LEAST_CHUNK, triton.next_power_of_2(triton.cdiv(size, most))) if most else 0
    if peers is None or not most or not x.numel() or not x.is_contiguous() or chunk * x.itemsize > SLOT_BYTES:
        return exchange.all_gather.reference(x, width)
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    num_chunks = triton.cdiv(size, chunk)
    _all_gather_kernel[(x.numel() // size * num_chunks,)](
        x, out, peers.addresses, peers.turns, peers.rank, num_chunks, size, width,
        WORLD=len(peers.addresses), CHUNK=chunk, BLOCK=_LEAST_CHUNK, num_warps=4, **overlap(x),
    )  # fmt: skip
    return out


def all_reduce_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of the sum over ranks and a residual, and that sum; see `ops.collective`."""
    peers = _peers_for(x)
    if peers is None or not residual.is_contiguous():
        return add_rms_norm(all_reduce(x), residual, weight, eps)
    out, total = _launch(x, residual, weight.contiguous(), eps, peers)
    return out, total
