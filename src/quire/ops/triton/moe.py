"""A mixture of experts: places of tokens sorted by expert, in tiles that belong to one expert each.

A place is one token at one of its experts. How many each expert gets is known on the device alone, so there are as many
tiles as there could be, and those that nobody needs end at once. Products add as `linear` does, and a token's experts
are summed in ascending order: its bits do not depend on the tokens beside it.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.ops.spec import TensorLike, TensorSpec, num_bytes, sizes_of
from quire.ops.triton.launch import dot
from quire.ops.triton.linear import options
from quire.ops.triton.tiles import Tile

_WIDTH = 1024  # features that one program of `sum_kernel` adds


class Routes(NamedTuple):
    """Which tokens go where.

    Attributes:
        tokens: [num_places], the token of each place.
        experts: [num_tiles], int32, the expert of each tile.
        firsts, ends: [num_tiles], its places; none in a tile that is not needed.
        places: [num_tokens, top_k], a token's places in ascending order, which is that of their experts.
        weights: [num_tokens, top_k], float32, in that order.
    """

    tokens: Tensor
    experts: Tensor
    firsts: Tensor
    ends: Tensor
    places: Tensor
    weights: Tensor


def moe(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return each token's weighted sum of experts; see `ops.linear.moe`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.shape[0]:
        return out
    x, num_experts = x if x.stride(1) == 1 else x.contiguous(), gate.shape[0]
    tile = _tile(x, expert_ids.numel(), num_experts)
    routes = route(expert_ids, expert_weights, num_experts, tile.rows)
    inner = _product(x, gate, up, routes, tile, routes.tokens)
    results = _product(inner, down, None, routes, tile, None)
    grid = (x.shape[0], triton.cdiv(x.shape[1], _WIDTH))
    sum_kernel[grid](
        results, routes.places, routes.weights, out, x.shape[1], expert_ids.shape[1], _WIDTH, enable_fp_fusion=False
    )
    return out


def _tile(x: Tensor, num_places: int, num_experts: int) -> Tile:
    """Return the tile for as many rows as an expert gets on average; of float32 always one, as in `tile_for`."""
    if x.dtype == torch.float32:
        return Tile(rows=16, features=64, channels=32, num_warps=4, num_stages=2)
    rows = next((rows for rows in (16, 64) if num_places <= rows * num_experts), 128)
    return Tile(rows, features=64, channels=64, num_warps=4, num_stages=3)


def route(expert_ids: Tensor, expert_weights: Tensor, num_experts: int, rows: int) -> Routes:
    """Sort places by expert and cut them into tiles.

    Args:
        expert_ids: [num_tokens, top_k], int32 | int64.
        expert_weights: [num_tokens, top_k], float32.
        num_experts: How many there are.
        rows: Places in a tile, at most.
    """
    num_places = expert_ids.numel()
    by_expert, order = expert_ids.reshape(-1).sort(stable=True)
    experts = torch.arange(num_experts, device=expert_ids.device, dtype=by_expert.dtype)
    starts, ends = torch.searchsorted(by_expert, experts), torch.searchsorted(by_expert, experts, right=True)
    tiles = (ends - starts + rows - 1) // rows
    last_tiles = tiles.cumsum(0)
    numbers = torch.arange(num_places // rows + min(num_places, num_experts), device=expert_ids.device)
    chosen = torch.searchsorted(last_tiles, numbers, right=True).clamp_(max=num_experts - 1)
    firsts = starts[chosen] + (numbers - (last_tiles - tiles)[chosen]) * rows
    places = torch.empty_like(order).scatter_(0, order, torch.arange(num_places, device=order.device))
    places, which = places.view(expert_ids.shape).sort(1)
    return Routes(
        order // expert_ids.shape[1], chosen.int(), firsts, ends[chosen], places, expert_weights.gather(1, which)
    )


def _product(
    x: Tensor, weight: Tensor, second: Tensor | None, routes: Routes, tile: Tile, sources: Tensor | None
) -> Tensor:
    """Return the product of each place with its expert's weight, in the order of places; see `expert_kernel`."""
    _, out_features, in_features = weight.shape
    out = torch.empty(routes.tokens.shape[0], out_features, dtype=x.dtype, device=x.device)
    expert_kernel[(routes.experts.shape[0] * triton.cdiv(out_features, tile.features),)](
        x, weight.contiguous(), None if second is None else second.contiguous(), out,
        sources, routes.experts, routes.firsts, routes.ends, out_features, in_features, x.stride(0),
        tile.rows, tile.features, tile.channels, in_features % tile.channels == 0, **options(tile),
    )  # fmt: skip
    return out


@triton.jit
def expert_kernel(
    x, weight, second, out, sources, experts, firsts, ends, out_features, in_features, x_stride,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, IS_WHOLE: tl.constexpr,
):  # fmt: skip
    """Compute one tile: `weight @ x`, or with a second weight `silu(weight @ x) * (second @ x)`, products rounded.

    Args:
        x: Pointer to [rows, in_features].
        weight, second: Pointers to [num_experts, out_features, in_features].
        out: Pointer to [num_places, out_features].
        sources: Pointer to the row of `x` of each place; None if it has places itself.
        experts, firsts, ends: Pointers to the tiles of `Routes`.
        IS_WHOLE: Whether CHANNELS divide `in_features`.
    """
    feature_tiles = tl.cdiv(out_features, FEATURES)
    tile = tl.program_id(0) // feature_tiles
    first, end = tl.load(firsts + tile), tl.load(ends + tile)
    if first >= end:
        return
    place = first + tl.arange(0, ROWS)
    feature = tl.program_id(0) % feature_tiles * FEATURES + tl.arange(0, FEATURES)
    there = tl.minimum(place, end - 1).to(tl.int64)
    if sources is not None:
        there = tl.load(sources + there).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    x_at = x + there[None, :] * x_stride + channel[:, None]
    at = tl.load(experts + tile).to(tl.int64) * out_features + tl.minimum(feature, out_features - 1)
    at = at[:, None] * in_features + channel[None, :]
    sums = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    more = tl.zeros((FEATURES, ROWS), dtype=tl.float32)
    for start in range(0, in_features, CHANNELS):
        if IS_WHOLE:
            w, v = tl.load(weight + at), tl.load(x_at)
        else:
            w = tl.load(weight + at, mask=channel[None, :] < in_features - start, other=0.0)
            v = tl.load(x_at, mask=channel[:, None] < in_features - start, other=0.0)
        sums = dot(w, v, sums)
        if second is not None:
            if IS_WHOLE:
                u = tl.load(second + at)
            else:
                u = tl.load(second + at, mask=channel[None, :] < in_features - start, other=0.0)
            more = dot(u, v, more)
        at += CHANNELS
        x_at += CHANNELS
    dtype: tl.constexpr = out.dtype.element_ty
    if second is not None:
        gate = sums.to(dtype).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        sums = gate * more.to(dtype).to(tl.float32)
    out_at = out + place.to(tl.int64)[:, None] * out_features + feature[None, :]
    tl.store(out_at, tl.trans(sums).to(dtype), mask=(place < end)[:, None] & (feature < out_features)[None, :])


@triton.jit
def sum_kernel(results, places, weights, out, width, TOP_K: tl.constexpr, WIDTH: tl.constexpr):
    """Add up one token's results by ascending expert, each times its weight, in float32.

    Args:
        results: Pointer to [num_places, width].
        places, weights: Pointers to those of `Routes`.
        out: Pointer to [num_tokens, width].
    """
    token = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    sums = tl.zeros((WIDTH,), dtype=tl.float32)
    for k in range(TOP_K):
        place, weight = tl.load(places + token * TOP_K + k), tl.load(weights + token * TOP_K + k)
        result = tl.load(results + place * width + feature, mask=feature < width, other=0.0)
        sums += result.to(tl.float32) * weight
    tl.store(out + token * width + feature, sums.to(out.dtype.element_ty), mask=feature < width)


def moe_bytes(x: TensorLike, expert_ids: TensorLike, gate: TensorLike, **rest: object) -> int:
    """Return the most bytes that `moe` holds: its result, those of all places, and what sorts them.

    Of each place that is an expert, an order and a position of 8 bytes, each once more where they are sorted, and a
    token, a place and a weight; of each tile, four numbers of 8 bytes.
    """
    num_places, (num_experts, inner, hidden) = prod(sizes_of(expert_ids)), sizes_of(gate)
    results = num_bytes(TensorSpec((num_places, inner + hidden), x.dtype))
    num_tiles = num_places // 16 + num_experts
    return num_bytes(x) + results + 96 * num_places + 64 * (num_tiles + num_experts)
