"""Ranks as threads: what they exchange, in which order it is added, and that none waits for one that has failed."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from quire.core.errors import ConfigError
from quire.distributed.tensors.communicator import current, use
from quire.distributed.tensors.ordered_sum import ordered_sum
from quire.distributed.tensors.threads import run_threads, thread_communicators


def test_sum_is_in_order_and_rounded_once():
    big, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    assert ordered_sum([big, small, small]).item() == 2.0**24, "one by one the small terms are lost"
    assert ordered_sum([small, small, big]).item() == 2.0**24 + 2
    thirds = [torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 2.0**-8, 2.0**-8)]
    assert ordered_sum(thirds).item() == 1.0 + 2.0**-7, "in bfloat16 one by one it would stay 1"
    x = torch.ones(3)
    assert ordered_sum([x]).data_ptr() != x.data_ptr()


def test_collectives():
    communicators = thread_communicators(3)

    def work(communicator):
        x = torch.full((2, 2), float(communicator.mapping.rank))
        assert current() is communicator
        return communicator.all_reduce(x), communicator.all_gather(x), communicator.all_gather(x[:0])

    for total, gathered, empty in run_threads(communicators, work):
        assert torch.equal(total, torch.full((2, 2), 3.0))
        assert torch.equal(gathered, torch.tensor([[0.0, 0, 1, 1, 2, 2]] * 2)) and empty.shape == (0, 6)


def test_groups_are_stages_and_stages_send():
    def work(communicator):
        mapping = communicator.mapping
        total = communicator.all_reduce(torch.tensor([float(mapping.rank)]))
        if mapping.is_first_pp_rank:
            communicator.send(total, mapping.next_pp_rank)
            total.zero_()  # it may be written to once `send` is back
            return None
        return communicator.recv((1,), torch.float32, mapping.prev_pp_rank, torch.device("cpu")).item(), total.item()

    assert run_threads(thread_communicators(2, 2), work) == [None, None, (1.0, 5.0), (1.0, 5.0)]


@pytest.mark.parametrize("waits", ["all_reduce", "recv"])
def test_nobody_waits_for_a_rank_that_failed(waits):
    def work(communicator):
        if communicator.mapping.rank == 0:
            time.sleep(0.05)
            raise ValueError("no more")
        if waits == "all_reduce":
            return communicator.all_reduce(torch.ones(1))
        return communicator.recv((1,), torch.float32, 0, torch.device("cpu"))

    start = time.monotonic()
    with pytest.raises(ValueError, match="no more"):
        run_threads(thread_communicators(*((2, 1) if waits == "all_reduce" else (1, 2))), work)
    assert time.monotonic() - start < 5


def test_current_is_of_the_thread_and_restored():
    first, second = thread_communicators(2)
    with pytest.raises(ConfigError, match=r"communicator: expected the ranks .* got none; run it under `use"):
        current()
    with use(first):
        with use(second):
            assert current() is second
        assert current() is first
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError):
            pool.submit(current).result()
    with pytest.raises(ConfigError):
        current()
