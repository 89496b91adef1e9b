"""Processes that are ranks, for tests: what each is to do is a function of a module of tests."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from quire.core.mapping import Mapping
from quire.distributed.tensors.torch_group import TorchCommunicator

_TIMEOUT_S = 100
Found = dict[str, torch.Tensor]
Work = Callable[[TorchCommunicator], Found]

_processes = multiprocessing.get_context("forkserver")  # torch is imported once for all ranks of all tests
_processes.set_forkserver_preload(["tests.distributed.ranks"])
_ROOT = Path(__file__).parents[2]


def run_ranks(work: Work, directory: Path, tp_size: int = 1, pp_size: int = 1) -> list[Found]:
    """Run a function for every rank, each in a process of its own.

    Args:
        work: Of a module; called with a communicator, returns tensors by name.
        directory: Where the ranks meet and put down what they found.
        tp_size: Ranks of a stage.
        pp_size: Stages.
    """
    mappings = [Mapping(tp_size * pp_size, rank, tp_size=tp_size, pp_size=pp_size) for rank in range(tp_size * pp_size)]
    ranks = [_processes.Process(target=_be_rank, args=(work, directory, mapping)) for mapping in mappings]
    os.environ.setdefault("PYTHONPATH", f"{_ROOT / 'src'}{os.pathsep}{_ROOT}")  # theirs is not the path of pytest
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_TIMEOUT_S)
            assert process.exitcode == 0, "a rank failed; it says why on stderr"
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [torch.load(directory / f"{mapping.rank}.pt") for mapping in mappings]


def _be_rank(work: Work, directory: Path, mapping: Mapping) -> None:
    torch.set_num_threads(1)
    communicator = TorchCommunicator.connect(mapping, "cpu", f"file://{directory}/meet", timeout_s=_TIMEOUT_S)
    torch.save(work(communicator), directory / f"{mapping.rank}.pt")
    communicator.disconnect()
