"""Linear layers by oneDNN with a weight packed at load, at row counts that are proven to keep every row's bits.

oneDNN chooses its kernel by shape, so a row may be summed in another order when it is computed beside other rows
(seen: one row alone with in_features 4864; 48 rows and more with AMX). The definition here is a tile of `TILE_ROWS`
rows. Another row count is used only after it has reproduced the tile's bits, on this machine with this shape, for rows
that are made to show any difference; a batch is padded up to the next such count. What the kernel sums in which order
depends on shapes, dtype and threads, never on values, so one proof holds for all data.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from quire.ops.linear import has_instructions
from quire.ops.spec import TensorLike, num_bytes, sizes_of

TILE_ROWS = 16
# Padding costs at most a third more rows; 512 rows are compute-bound on every machine tried.
ROW_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
# A probe's rows are all but orthogonal to this many rows of the weight. Their products cancel, so another order of
# summation shows in 1 of 30 of them, and not in 1 of 10,000 results as for any rows (measured: bf16, AMX).
_PROBE_ROWS, _PROBE_COLUMNS = 8, 64
_PLAIN_ELEMENTS, _PLAIN_ROWS = 1 << 17, 1 << 11


@dataclass(frozen=True, slots=True)
class _Probe:
    """Rows that tell how a weight is summed.

    Attributes:
        weight: The packed weight that the rows were made for, as long as somebody holds it.
        rows: [_PROBE_ROWS, in_features].
    """

    weight: weakref.ref[Tensor]
    rows: Tensor


@dataclass(slots=True)
class _Proofs:
    """Which (row count, threads, has bias) gave the tile's bits, for one weight shape and dtype."""

    known: dict[tuple[int, int, bool], bool] = field(default_factory=dict)
    probe: _Probe | None = None


_PROOFS: dict[tuple[int, int, torch.dtype], _Proofs] = {}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight in oneDNN's own layout.

    Attributes:
        weight: Opaque blocks, or the plain [out_features, in_features] matrix where oneDNN does not take the dtype.
        is_packed: Which of the two.
        in_features: Columns.
        dtype: Of weight and activations.
        proofs: Shared by all weights of this shape and dtype.
    """

    weight: Tensor
    is_packed: bool
    in_features: int
    out_features: int
    dtype: torch.dtype
    proofs: _Proofs


def pack(weight: Tensor) -> PackedLinear:
    """Reorder a weight [out_features, in_features] for oneDNN."""
    out_features, in_features = weight.shape
    proofs = _PROOFS.setdefault((in_features, out_features, weight.dtype), _Proofs())
    is_packed = _is_supported(weight.dtype)
    held = weight.contiguous()
    if is_packed:
        held = torch.ops.mkldnn._reorder_linear_weight(held, None)
    if proofs.probe is None or proofs.probe.weight() is None:
        proofs.probe = _Probe(weakref.ref(held), _probe_rows(weight))
    return PackedLinear(held, is_packed, in_features, out_features, weight.dtype, proofs)


def _probe_rows(weight: Tensor) -> Tensor:
    """Return rows whose products with some rows of a weight are small differences of large sums."""
    out_features, in_features = weight.shape
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_PROBE_ROWS, in_features, generator=generator, dtype=torch.float64)
    columns = min(_PROBE_COLUMNS, out_features, in_features // 2)
    if columns > 0:
        chosen = weight[:: out_features // columns][:columns].double()
        basis = torch.linalg.qr(chosen.t()).Q
        rows -= rows @ basis @ basis.t()
    return rows.to(weight.dtype)


@cache
def _is_supported(dtype: torch.dtype) -> bool:
    """Return whether oneDNN is there and takes this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.float16 and has_instructions(dtype)


def run(x: Tensor, weight: PackedLinear, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`; see `ops.linear.linear`."""
    rows = x.reshape(-1, weight.in_features)
    padded = _proven_count(rows.shape[0], weight, bias is not None) if 0 < rows.shape[0] <= ROW_COUNTS[-1] else 0
    if padded:
        out = _gemm(pad(rows, padded), weight, bias)[: rows.shape[0]]
    else:
        out = rows.new_empty(rows.shape[0], weight.out_features)
        for start in range(0, rows.shape[0], ROW_COUNTS[-1]):
            piece = slice(start, start + ROW_COUNTS[-1])
            _write(rows[piece], out[piece], weight, bias)
    return out.view(*x.shape[:-1], out.shape[-1])


def _write(rows: Tensor, out: Tensor, weight: PackedLinear, bias: Tensor | None) -> None:
    """Compute at most `ROW_COUNTS[-1]` rows into `out`: at once if that is proven, else in tiles, the definition."""
    count = rows.shape[0]
    padded = _proven_count(count, weight, bias is not None)
    for start in range(0, count, padded or TILE_ROWS):
        tile = slice(start, start + (padded or TILE_ROWS))
        out[tile] = _gemm(pad(rows[tile], padded or TILE_ROWS), weight, bias)[: out[tile].shape[0]]


def _proven_count(count: int, weight: PackedLinear, has_bias: bool) -> int:
    """Return the smallest proven row count of at least `count`, or 0 if only tiles will do.

    Beyond a tile only the next count is tried: a batch that is padded to more is slower than one in tiles.
    """
    threads, known = torch.get_num_threads(), weight.proofs.known
    most = max(TILE_ROWS, next_count(count))
    for candidate in ROW_COUNTS:
        if not count <= candidate <= most:
            continue
        key = (candidate, threads, has_bias)
        if key not in known:
            known[key] = _keeps_bits(candidate, weight, has_bias)
        if known[key]:
            return candidate
    return 0


def _keeps_bits(count: int, weight: PackedLinear, has_bias: bool) -> bool:
    """Compare rows computed together with the same rows in tiles, at other places."""
    held, rows = _probe(weight)
    bias = None
    if has_bias:
        generator = torch.Generator().manual_seed(count)
        bias = (torch.randn(weight.out_features, generator=generator) * 1e-3).to(weight.dtype)
    expected = _by_tiles(rows, held, bias)
    for start in range(0, len(rows), count):
        chosen = torch.arange(start + 3, start + 3 + count) % len(rows)
        together = _gemm(rows[chosen], held, bias)
        pieces = zip(together.split(TILE_ROWS), chosen.split(TILE_ROWS), strict=True)  # type: ignore[no-untyped-call]
        if not all(torch.equal(piece, expected[places]) for piece, places in pieces):
            return False
    return True


def _probe(weight: PackedLinear) -> tuple[PackedLinear, Tensor]:
    """Return a weight of this shape and rows for it: its probe's, or many plain ones where that weight is gone."""
    probe = weight.proofs.probe
    held = None if probe is None else probe.weight()
    if probe is not None and held is not None:
        return replace(weight, weight=held), probe.rows
    count = min(_PLAIN_ELEMENTS // weight.out_features + 1, _PLAIN_ROWS)
    generator = torch.Generator().manual_seed(0)
    return weight, torch.randn(count, weight.in_features, generator=generator).to(weight.dtype)


def _by_tiles(rows: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """Compute rows in padded tiles of `TILE_ROWS`: the definition."""
    tiles = rows.split(TILE_ROWS)  # type: ignore[no-untyped-call]
    return torch.cat([_gemm(pad(t, TILE_ROWS), weight, bias)[: t.shape[0]] for t in tiles])


def pad(rows: Tensor, count: int) -> Tensor:
    """Return rows filled up with zeros to `count`, contiguous."""
    if rows.shape[0] == count:
        return rows.contiguous()
    padded = rows.new_zeros(count, rows.shape[1])
    padded[: rows.shape[0]] = rows
    return padded


def _gemm(rows: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    if not weight.is_packed:
        return torch.nn.functional.linear(rows, weight.weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight.weight, bias, "none", [], "")
    return out


# --------------------------------------------------------------------------------------------------- what they hold

# oneDNN's blocks on AVX2, AVX-512 and AMX: so many rows of 64 bytes.
_BLOCK_ROWS = {torch.float32: 64, torch.bfloat16: 32, torch.int8: 64}


def blocks_bytes(weight: TensorLike) -> int:
    """Return the bytes of a weight [out_features, in_features] in oneDNN's own layout, filled up to whole blocks."""
    out_features, in_features = sizes_of(weight)
    rows = -(-out_features // _BLOCK_ROWS[weight.dtype]) * _BLOCK_ROWS[weight.dtype]
    return rows * (-(-in_features * weight.dtype.itemsize // 64) * 64)


def packed_bytes(weight: TensorLike) -> int | None:
    """Return the bytes that `pack` makes of a weight; None if it keeps the weight as it is."""
    return blocks_bytes(weight) if _is_supported(weight.dtype) else None


def linear_bytes(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> int:
    """Return the most bytes that `run` holds: the rows of a product and what comes of them; with several, the result.

    The first time, these rows are those of the proof that their number keeps bits.
    """
    num_rows, (out_features, in_features), size = _num_rows(x), sizes_of(weight), x.dtype.itemsize
    count = next_count(min(num_rows, ROW_COUNTS[-1]))
    probe = _PROBE_ROWS * out_features * size + 8 * count  # what should come of it, and which rows were taken
    # Unpacked weights take torch's own way, which copies the rows for oneDNN: 1.0 to 1.6 times for float16 with AMX.
    is_copied = has_instructions(weight.dtype) and not _is_supported(weight.dtype)
    copied = count * in_features * size * 3 // 2 if is_copied else 0
    kept = num_rows * out_features * size if is_in_pieces(x) else 0
    return kept + count * (in_features + out_features) * size + max(probe, copied)


def result_bytes(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> int:
    """Return the bytes behind the result of `run`, padding included."""
    num_rows = _num_rows(x)
    count = num_rows if is_in_pieces(x) else next_count(num_rows)
    return count * sizes_of(weight)[0] * x.dtype.itemsize


# What oneDNN 3 keeps of each kernel it has made, within 10 percent for weights of 0.1 to 45 million elements (Xeon with
# AMX, torch 2.13).
_KERNEL_BYTES = {torch.float32: 590_000, torch.bfloat16: 670_000, torch.int8: 290_000}


def kernels_bytes(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> tuple[object, int]:
    """Return which kernels oneDNN makes for `run`, and what they take when every row count has occurred.

    Args:
        x: Rows of the largest step.
        weight: [out_features, in_features].
        bias: Or None.

    Returns:
        What calls that share kernels have in common, and the bytes of all of them.
    """
    count = sum(1 for count in ROW_COUNTS if count <= next_count(min(_num_rows(x), ROW_COUNTS[-1])))
    probe = _PROBE_ROWS * sizes_of(weight)[1] * weight.dtype.itemsize
    return (sizes_of(weight), weight.dtype, bias is None), probe + count * _KERNEL_BYTES.get(weight.dtype, 0)


def is_in_pieces(x: TensorLike) -> bool:
    """Return whether `run` computes some rows after the other."""
    return _num_rows(x) > ROW_COUNTS[-1]


def _num_rows(x: TensorLike) -> int:
    return num_bytes(x) // max(1, sizes_of(x)[-1] * x.dtype.itemsize)


def next_count(num_rows: int) -> int:
    """Return the smallest of `ROW_COUNTS` that is at least `num_rows`, which is at most the largest."""
    return next(count for count in ROW_COUNTS if count >= num_rows)
