"""Mapping: the grid of ranks."""

from itertools import product

import pytest

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping

GRIDS = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 2), (4, 2, 3), (2, 5, 2)]


def grid(tp, pp, cp):
    size = tp * pp * cp
    return [Mapping(size, rank, tp_size=tp, pp_size=pp, cp_size=cp) for rank in range(size)]


def test_one_rank_is_the_default():
    mapping = Mapping()
    assert (mapping.tp_rank, mapping.pp_rank, mapping.cp_rank, mapping.node_rank, mapping.local_rank) == (0,) * 5
    assert mapping.tp_group == mapping.pp_group == mapping.cp_group == [0]
    assert mapping.is_first_pp_rank and mapping.is_last_pp_rank
    assert mapping.prev_pp_rank == mapping.next_pp_rank == 0 and list(mapping.pp_layers(3)) == [0, 1, 2]


def test_a_grid_by_hand():
    """tp 2, cp 2, pp 2: rank 5 = pp 1, cp 0, tp 1."""
    mapping = Mapping(8, 5, tp_size=2, pp_size=2, cp_size=2)
    assert (mapping.tp_rank, mapping.cp_rank, mapping.pp_rank) == (1, 0, 1)
    assert (mapping.tp_group, mapping.cp_group, mapping.pp_group) == ([4, 5], [5, 7], [1, 5])
    assert (mapping.prev_pp_rank, mapping.next_pp_rank) == (1, 1)
    assert not mapping.is_first_pp_rank and mapping.is_last_pp_rank


@pytest.mark.parametrize("tp, pp, cp", GRIDS)
def test_ranks_and_groups_agree(tp, pp, cp):
    ranks = grid(tp, pp, cp)
    assert [(m.pp_rank, m.cp_rank, m.tp_rank) for m in ranks] == list(product(range(pp), range(cp), range(tp)))
    for m in ranks:
        place = {"tp": m.tp_rank, "pp": m.pp_rank, "cp": m.cp_rank}
        for axis, group in (("tp", m.tp_group), ("pp", m.pp_group), ("cp", m.cp_group)):
            others = {k: v for k, v in place.items() if k != axis}
            alike = [o.rank for o in ranks if all(getattr(o, f"{k}_rank") == v for k, v in others.items())]
            assert group == alike and group[place[axis]] == m.rank
        assert m.pp_group[(m.pp_rank + 1) % pp] == m.next_pp_rank
        assert m.pp_group[m.pp_rank - 1] == m.prev_pp_rank


@pytest.mark.parametrize("num_layers", [5, 6, 7, 32])
@pytest.mark.parametrize("pp", [1, 2, 3, 5])
def test_layers_are_dealt_out_once_the_remainder_first(num_layers, pp):
    stages = [m.pp_layers(num_layers) for m in grid(1, pp, 1)]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    sizes = [len(stage) for stage in stages]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def test_nodes():
    mapping = Mapping(6, 5, 4, tp_size=6)
    assert (mapping.node_rank, mapping.local_rank) == (1, 1)


@pytest.mark.parametrize(
    "given, resolved",
    [({}, (4, 1)), ({"moe_tp_size": 2}, (2, 2)), ({"moe_ep_size": 4}, (1, 4)), ({"moe_tp_size": 1}, (1, 4))],
)
def test_sizes_of_experts_follow(given, resolved):
    mapping = Mapping(4, tp_size=4, **given)
    assert (mapping.moe_tp_size, mapping.moe_ep_size) == resolved


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"world_size": 4, "tp_size": 2}, r"world_size: expected tp_size 2 \* pp_size 1 \* cp_size 1 = 2, got 4"),
        ({"tp_size": 2}, "world_size: expected .* = 2, got 1"),
        ({"world_size": 2, "rank": 2, "tp_size": 2}, "rank: expected one below world_size 2, got 2"),
        ({"rank": -1}, "rank: expected an integer of at least 0, got -1"),
        ({"tp_size": 0}, "tp_size: expected an integer of at least 1, got 0"),
        ({"pp_size": True}, "pp_size: expected an integer"),
        ({"world_size": 4, "tp_size": 4, "moe_tp_size": 3}, "a product of tp_size 4"),
        ({"world_size": 4, "tp_size": 4, "moe_tp_size": 2, "moe_ep_size": 4}, "a product of tp_size 4"),
        ({"world_size": 2, "tp_size": 2, "moe_ep_size": 0}, "moe_ep_size: expected an integer of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Mapping(**arguments)


def test_stages_need_layers():
    with pytest.raises(ConfigError, match="num_layers: expected at least one for each of 3 stages, got 2"):
        Mapping(3, pp_size=3).pp_layers(2)


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Mapping().rank = 1


def test_layers_as_asked_for():
    stages = [Mapping(3, rank, pp_size=3, pp_partition=(1, 4, 2)).pp_layers(7) for rank in range(3)]
    assert [list(layers) for layers in stages] == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    "partition, message",
    [
        ((1,), "numbers of layers for 2 stages, got 1"),
        ((0, 2), "an integer of at least 1, got 0"),
        ((1, 1, 1), "got 1, 1, 1"),
    ],
)
def test_layers_for_other_stages(partition, message):
    with pytest.raises(ConfigError, match=f"pp_partition: expected .*{message}"):
        Mapping(2, pp_size=2, pp_partition=partition)
