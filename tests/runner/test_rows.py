"""Rows by slot: what a step's diff makes of them, and of the block tables on a device."""

import numpy as np

from quire.core.request import NewRow, ScheduledRow, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.runner.rows import Rows, Slots

MAX_BLOCKS = 6
GREEDY = SamplingParams(temperature=0.0)


def new(row_id, *block_ids, token_ids=(1, 2, 3), num_prompt_tokens=2):
    return NewRow(row_id, token_ids, num_prompt_tokens, block_ids, GREEDY)


class World:
    """Slots, and the block tables that their updates make."""

    def __init__(self, max_num_seqs=3):
        self.slots = Slots(max_num_seqs, MAX_BLOCKS)
        self.tables = np.full((max_num_seqs, MAX_BLOCKS), -1, dtype=np.int32)

    def apply(self, **step):
        updates = self.slots.apply(SchedulerOutput(**step))
        assert updates.dtype == np.int32 and updates.shape[1] == 2
        assert len({place for place, _ in updates.tolist()}) == len(updates), "no place twice"
        self.tables.reshape(-1)[updates[:, 0]] = updates[:, 1]

    def blocks(self, row_id):
        row = self.slots[row_id]
        return self.tables[row.slot, : row.num_blocks].tolist()


def test_new_rows_get_slots_of_their_own():
    world = World()
    world.apply(new_rows=(new(7, 4, 5), new(9, 6), new(11)))
    assert len(world.slots) == 3 and {world.slots[i].slot for i in (7, 9, 11)} == {0, 1, 2}
    assert world.blocks(7) == [4, 5] and world.blocks(9) == [6] and world.blocks(11) == []
    row = world.slots[7]
    assert row.token_ids == [1, 2, 3] and row.num_prompt_tokens == 2 and row.sampling.output_token_ids == [3]


def test_a_step_without_news_changes_nothing():
    world = World()
    world.apply(new_rows=(new(1, 4),))
    before = world.tables.copy()
    world.apply(rows=(ScheduledRow(1, 3, 1),))
    assert (world.tables == before).all()


def test_appended_blocks_follow():
    world = World()
    world.apply(new_rows=(new(1, 4), new(2, 5)))
    world.apply(rows=(ScheduledRow(1, 3, 1, (8, 9)), ScheduledRow(2, 3, 1)))
    world.apply(rows=(ScheduledRow(1, 4, 1, (7,)), ScheduledRow(2, 4, 1, (3,))))
    assert world.blocks(1) == [4, 8, 9, 7] and world.blocks(2) == [5, 3]


def test_replaced_blocks_are_replaced_and_nothing_else():
    world = World()
    world.apply(new_rows=(new(1, 4, 5), new(2, 4, 6)))
    world.apply(replaced_block_ids=((2, 0, 9),), rows=(ScheduledRow(2, 3, 1, (10,)),))
    assert world.blocks(1) == [4, 5] and world.blocks(2) == [9, 6, 10]


def test_what_a_new_row_brings_is_not_applied_twice():
    """A row that is admitted in this step comes with its table as it is now."""
    world = World()
    world.apply(new_rows=(new(1, 4, 5),), replaced_block_ids=((1, 0, 4),), rows=(ScheduledRow(1, 0, 3, (5,)),))
    assert world.blocks(1) == [4, 5]


def test_removed_and_added_again_in_one_step():
    world = World(max_num_seqs=2)
    world.apply(new_rows=(new(1, 4, 5, 6), new(2, 7)))
    world.slots[1].error = "an old one"
    world.apply(removed_row_ids=(1,), new_rows=(new(1, 8, token_ids=(1, 2, 3, 4)),))
    assert len(world.slots) == 2 and world.blocks(1) == [8] and world.blocks(2) == [7]
    row = world.slots[1]
    assert row.token_ids == [1, 2, 3, 4] and row.sampling.output_token_ids == [3, 4] and row.error is None


def test_slots_are_used_again():
    world = World(max_num_seqs=2)
    world.apply(new_rows=(new(1, 4), new(2, 5)))
    freed = world.slots[1].slot
    world.apply(removed_row_ids=(1, 99), new_rows=(new(3, 6),))
    assert world.slots[3].slot == freed and world.blocks(3) == [6] and world.blocks(2) == [5]


def test_rows_of_the_host_agree():
    """`Rows` holds the same tables, whole, after the same steps."""
    world, rows = World(), Rows(3, MAX_BLOCKS)
    steps = (
        {"new_rows": (new(1, 4), new(2, 5, 6))},
        {"rows": (ScheduledRow(1, 3, 1, (8, 9, 10)),), "replaced_block_ids": ((2, 1, 11),)},
        {"removed_row_ids": (2,), "new_rows": (new(2, 5), new(3, 6))},
    )
    for step in steps:
        world.apply(**step)
        rows.apply(SchedulerOutput(**step))
    for row_id in (1, 2, 3):
        row = rows[row_id]
        table = rows.tables.blocks[row.slot].tolist()
        assert table[: row.num_blocks] == world.blocks(row_id)
        assert table[row.num_blocks :] == [0] * (MAX_BLOCKS - row.num_blocks), "of nobody before"
