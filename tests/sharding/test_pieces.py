"""Pieces of dimensions against sets of places; parts of constants against the constants, cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.graph import functional as F
from quire.graph.network import Network, Tensor, net_guard
from quire.plan.folding import Constants
from quire.plan.weight_source import TensorWeights
from quire.sharding.cutting import Cutter
from quire.sharding.local_weights import LocalWeights
from quire.sharding.pieces import Pieces

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5)


def places(pieces):
    return {place for start, stop in pieces.ranges for place in range(start, stop)}


@given(RANGES, RANGES, st.integers(1, 4), st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_pieces_are_sets(first, second, factor, window):
    a, b, (low, high) = Pieces.of(first), Pieces.of(second), sorted(window)
    assert places(a | b) == places(a) | places(b) and a.size == len(places(a))
    assert all(x < y for x, y in a.ranges) and all(x[1] < y[0] for x, y in zip(a.ranges, a.ranges[1:], strict=False))
    assert places(a.moved(3)) == {place + 3 for place in places(a)}
    assert places(a.times(factor)) == {factor * place + i for place in places(a) for i in range(factor)}
    assert places(a.over(factor)) == {place // factor for place in places(a)}
    assert a.times(factor).over(factor) == a and a.times(factor).is_multiple(factor)
    assert places(a.within(low, high)) == {place - low for place in places(a) if low <= place < high}
    assert a.offset(low) == len({place for place in places(a) if place < low})


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 20))
def test_everything_is_dealt_out_evenly(num_ranks, unit, count):
    dealt = [Pieces.dealt(count * unit, unit, rank, num_ranks) for rank in range(num_ranks)]
    assert sum(each.size for each in dealt) == count * unit == Pieces.of(r for each in dealt for r in each.ranges).size
    assert max(each.size for each in dealt) - min(each.size for each in dealt) in (0, unit)


def add_constants():
    """Constants of every kind that a rule cuts, over weights, by name."""
    network = Network("constants")
    with net_guard(network):
        w = {name: network.add_weight(name, dtype, shape) for name, dtype, shape in (
            ("a", "float32", (8, 12)), ("b", "float32", (4, 12)), ("v", "float32", (12,)), ("packed", "int32", (8, 2)),
            ("bytes", "uint8", (8, 16)), ("f8", "float8_e4m3fn", (8, 12)), ("grid", "float32", (2, 3)),
            ("order", "int32", (12,)), ("one", "float32", (1,)))}  # fmt: skip
        found = {
            "weight": w["a"],
            "concat": F.concat([w["a"], w["b"]], 0),
            "concat_columns": F.concat([w["a"], F.slice(w["a"], 1, 2, 6)], 1),
            "slice": F.slice(F.concat([w["a"], w["b"]], 0), 0, 2, 11),
            "permute": F.permute(w["a"], [1, 0]),
            "transpose": F.transpose(w["a"], 0, 1),
            "split_dim": F.concat([w["a"], w["b"]], 0).view(3, 4, 12),
            "column": w["v"].view(-1, 1),
            "row": F.expand(w["v"].view(1, 12), [8, 12]),
            "full": F.full([8, 12], 3.0, "float32"),
            "expand_one": F.expand(w["one"], [8]),
            "scaled": F.cast(F.mul(w["a"], w["v"]), "bfloat16"),
            "pack_int4": F.pack_int4(w["bytes"]),
            "unpack": F.unpack_int32(w["packed"], 4, 1),
            "unpack_rows": F.unpack_int32(w["packed"], 4, 0),
            "index_select": F.index_select(w["a"], w["order"], 1),
            "dequantize": F.dequantize_weight(w["f8"], w["grid"], [4, 4]),
            "mixed": F.softmax(w["a"], 1),
            "merged": w["a"].view(96),
        }
        for name, tensor in found.items():
            if tensor is not w["a"]:
                tensor.mark_output(name)
    return network, {name: tensor.node for name, tensor in found.items()}


def values_of(network):
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, spec in network.weights.items():
        drawn = torch.randint(0, 16, spec.shape, generator=generator)
        values[name] = drawn.to(spec.dtype) if name != "order" else torch.randperm(12, generator=generator).int()
    return values


@pytest.mark.parametrize("name", sorted(add_constants()[1]))
def test_a_part_of_a_constant_is_the_constant_cut(name):
    for dim in range(3):
        for ranges in (((0, 2),), ((1, 3),), ((0, 1), (2, 4)), ((4, 8),), ((2, 3),)):
            network, nodes = add_constants()
            node, values = nodes[name], values_of(network)
            shape = node.meta["spec"].shape
            if dim >= len(shape) or ranges[-1][1] > shape[dim]:
                continue
            whole = Constants(network, TensorWeights(values)).value(node)
            expected = torch.cat([whole.narrow(dim, a, b - a) for a, b in ranges], dim)
            cutter = Cutter(network)
            part = cutter.take(node, dim, Pieces.of(ranges))
            assert cutter.take(node, dim, Pieces.of(ranges)) is part, "made once"
            if part is node:  # all of it
                continue
            parts = {network.rename_weight(made, f"cut.{i}"): of for i, (made, of) in enumerate(cutter.parts.items())}
            network.mark_output(Tensor.of(network, part), "part")
            local = LocalWeights(network.weights, parts, TensorWeights(values))
            got = Constants(network, local).value(part)
            assert torch.equal(got.float(), expected.float()) and got.dtype == expected.dtype, (name, dim, ranges)
            assert cutter.take(node, dim, Pieces.of([(0, shape[dim])])) is node
