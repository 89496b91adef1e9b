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
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def run(x: Tensor, weight: PackedLinear, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`; see `ops.linear.linear`."""
    rows = x.reshape(-1, weight.in_features)
    count = rows.shape[0]
    if count <= ROW_COUNTS[-1]:
        out = _up_to_largest(rows, weight, bias)
    else:
        out = torch.cat([_up_to_largest(piece, weight, bias) for piece in rows.split(ROW_COUNTS[-1])])  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


def _up_to_largest(rows: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """Compute at most `ROW_COUNTS[-1]` rows."""
    count = rows.shape[0]
    if count == 0:
        return rows.new_empty(0, weight.out_features)
    padded = _proven_count(count, weight, bias is not None)
    if padded == 0:
        return _by_tiles(rows, weight, bias)
    return _gemm(_pad(rows, padded), weight, bias)[:count]


def _proven_count(count: int, weight: PackedLinear, has_bias: bool) -> int:
    """Return the smallest proven row count of at least `count`, or 0 if only tiles will do."""
    threads, known = torch.get_num_threads(), weight.proofs.known
    for candidate in ROW_COUNTS:
        if candidate < count:
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
        if not torch.equal(_gemm(rows[chosen], held, bias), expected[chosen]):
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
    return torch.cat([_gemm(_pad(t, TILE_ROWS), weight, bias)[: t.shape[0]] for t in tiles])


def _pad(rows: Tensor, count: int) -> Tensor:
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
