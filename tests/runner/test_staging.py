"""The integers of a step arrive as they were sent, at places that no step moves."""

import numpy as np
import torch

from quire.plan.device import torch_device
from quire.runner.staging import Staging

DEVICE = torch_device("cuda")


def array(*values):
    return np.array(values, dtype=np.int32)


def staging(num_buffers=2):
    return Staging(4, 6, 10, 8, num_buffers, DEVICE)


def send(stage, first):
    """Send two rows, one of them sampled, with numbers from `first` on."""
    rows = array(first, 0, 0, first + 1, 5, -1).reshape(2, 3)
    updates = array(first, first + 7, first + 1, first + 8).reshape(2, 2)
    tokens = array(first + 2, first + 3, first + 4)
    return stage.send(rows, array(0, 3, 4), [first + 1], [3, 0, 1], tokens, updates)


def test_all_parts_arrive():
    step = send(staging(), 20)
    assert step.num_tokens == 4
    assert step.rows.tolist() == [[20, 0, 0], [21, 5, -1]]
    assert step.query_start_loc.tolist() == [0, 3, 4]
    assert step.sampled_slots.tolist() == [21]
    assert step.logits_indices.tolist() == [3, 0, 1]
    assert step.tokens[:3].tolist() == [22, 23, 24]
    assert step.updates.tolist() == [[20, 27], [21, 28]]
    parts = (step.rows, step.query_start_loc, step.sampled_slots, step.logits_indices, step.tokens, step.updates)
    assert all(part.dtype == torch.int32 and part.device.type == DEVICE.type for part in parts)


def test_empty_parts_are_empty():
    none = np.zeros(0, dtype=np.int32)
    step = staging().send(array(0, 3, -1).reshape(1, 3), array(0, 1), [], [], none, none)
    assert not len(step.sampled_slots) and not len(step.logits_indices) and step.updates.shape == (0, 2)
    assert len(step.tokens), "an empty view would have no address"


def test_the_largest_step_fits():
    stage, ones = staging(), [1] * 6
    step = stage.send(
        array(*range(12)).reshape(4, 3), array(0, 7, 8, 9, 10), ones[:4], ones, array(*range(10)),
        array(*range(16)).reshape(8, 2),
    )  # fmt: skip
    assert step.rows.view(-1).tolist() == list(range(12)) and step.tokens[:10].tolist() == list(range(10))
    assert step.updates.view(-1).tolist() == list(range(16))


def test_what_a_graph_reads_never_moves():
    stage = staging()
    steps = [stage.padding(2), send(stage, 20), send(stage, 40), stage.padding(4)]
    for name in ("rows", "query_start_loc", "sampled_slots", "logits_indices", "tokens"):
        assert len({getattr(step, name).data_ptr() for step in steps}) == 1, name
    padded = stage.padding(3)
    assert padded.rows.tolist() == [[-1, 0, -1]] * 3 and padded.query_start_loc.tolist() == [0, 1, 2, 3]
    assert padded.sampled_slots.tolist() == [-1] * 3 and padded.logits_indices.tolist() == [0, 1, 2]
    assert padded.num_tokens == 3


def test_the_host_keeps_each_step_in_flight():
    stage = staging(num_buffers=3)
    for first in (20, 40, 60):
        send(stage, first)
    assert sorted(int(host[0]) for host in stage._hosts) == [20, 40, 60]
    send(stage, 80)
    assert sorted(int(host[0]) for host in stage._hosts) == [40, 60, 80], "the oldest is overwritten"
