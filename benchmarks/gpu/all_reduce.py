"""Measure sums over the GPUs of one machine, of a step's rows with the norm that follows, and write JSON.

    python -m benchmarks.gpu.all_reduce [--width 4096] [--output all_reduce.json]

Ways: "peers", one kernel through memory that all GPUs reach (without such memory as "moved"); "moved", the library's
moves and a sum in order of ranks; "library", nccl's own sum, whose bits depend on the size. Each is a captured graph of
64 calls in a row.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.gpu.run import Report
from quire.core.mapping import Mapping
from quire.distributed.tensors.communicator import use
from quire.distributed.tensors.torch_group import TorchCommunicator
from quire.ops.triton import norm, peers

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CALLS, _REPEATS = 64, 20
Way = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def time_us(way: Way, x: torch.Tensor) -> float:
    """Return microseconds a call, of 64 in one captured graph."""
    way(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            way(x)
    times = []
    for _ in range(_REPEATS):
        dist.barrier()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / _CALLS)
    return float(sorted(times)[_REPEATS // 2])


def rank_main(rank: int, world_size: int, port: int, width: int, output: Path) -> None:
    """Be one rank; the first writes what it found."""
    torch.cuda.set_device(rank)
    mapping = Mapping(world_size, rank, tp_size=world_size)
    communicator = TorchCommunicator.connect(mapping, "cuda", f"tcp://127.0.0.1:{port}")
    report = Report(argparse.Namespace(engine="quire", output=output)) if rank == 0 else None
    weight = torch.randn(width, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode(), use(communicator):
        for rows in ROWS:
            torch.manual_seed(rows)
            residual = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
            torch.manual_seed(1000 * rank + rows)
            x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)

            def fused(x: torch.Tensor, residual: torch.Tensor = residual) -> tuple[torch.Tensor, torch.Tensor]:
                return peers.all_reduce_add_rms_norm(x, residual, weight, 1e-5)

            def moved(x: torch.Tensor, residual: torch.Tensor = residual) -> tuple[torch.Tensor, torch.Tensor]:
                return norm.add_rms_norm(communicator.all_reduce(x), residual, weight, 1e-5)

            def library(x: torch.Tensor, residual: torch.Tensor = residual) -> tuple[torch.Tensor, torch.Tensor]:
                total = x.clone()
                dist.all_reduce(total)
                return norm.add_rms_norm(total, residual, weight, 1e-5)

            ways: dict[str, Way] = {"peers": fused, "moved": moved, "library": library}
            results = {name: way(x) for name, way in ways.items()}
            is_equal = all(torch.equal(a, b) for a, b in zip(results["peers"], results["moved"], strict=True))
            numbers = {"is_equal": is_equal, **{f"{n}_us": time_us(way, x) for n, way in ways.items()}}
            if report is not None:
                report.add(f"all_reduce.{world_size}_ranks.{width}.{rows}_rows", numbers)
    communicator.disconnect()


def main() -> None:
    """Start a process for each GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("all_reduce.json"))
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    world_size = torch.cuda.device_count()
    spawn(rank_main, (world_size, port, options.width, options.output), nprocs=world_size)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
