"""The measurements: the card's roof, one request at a time, a prompt, attention alone, and many requests at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.shapes import SHAPES, linear_parameters, prefill_flops

Numbers = dict[str, float]


def median_ms(run: Callable[[], object], times: int = 7) -> float:
    """Return the median time of `run` on the device, in milliseconds."""
    run()
    found: list[float] = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return sorted(found)[times // 2]


def roof() -> Numbers:
    """Measure what the card reaches: a copy of 4 GiB (bytes read and written), and a matrix product of random bf16."""
    found = {"copy_tb_s": _copy_tb_s(), "matmul_tflop_s": _matmul_tflop_s()}
    torch.cuda.empty_cache()
    return found


def _copy_tb_s() -> float:
    source = torch.randint(0, 255, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e9


def _matmul_tflop_s() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9


def _prompts(count: int, lengths: Callable[[], int], vocab_size: int, seed: int = 0) -> list[dict[str, list[int]]]:
    rng = random.Random(seed)
    return [{"prompt_token_ids": [rng.randrange(5, vocab_size) for _ in range(lengths())]} for _ in range(count)]


def _run(llm: Any, params: Any, prompts: list[dict[str, list[int]]], output_lens: list[int]) -> float:
    """Return how many seconds all prompts take, queued at once."""
    settings = [params(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in output_lens]
    start = time.perf_counter()
    llm.generate(prompts, settings, use_tqdm=False)
    return time.perf_counter() - start


def decode_one(llm: Any, params: Any, shape: str, copy_tb_s: float, bytes_each: int = 2) -> Numbers:
    """Measure the time of a token of one request, 128 tokens in and 128 out, by what 128 more tokens take."""
    vocab = SHAPES[shape]["vocab_size"]
    found = []
    for seed in range(4):  # the first compiles
        short, long = (_run(llm, params, _prompts(1, lambda: 128, vocab, 10 * seed + i), [n])
                       for i, n in ((1, 1), (2, 129)))  # fmt: skip
        found.append(1e3 * (long - short) / 128)
    ms = sorted(found[1:])[1]
    tb_s = linear_parameters(SHAPES[shape]) * bytes_each / ms / 1e9
    return {"ms_per_token": ms, "tb_s": tb_s, "share_of_copy": tb_s / copy_tb_s}


def prefill(llm: Any, params: Any, shape: str, matmul_tflop_s: float, length: int = 8192) -> Numbers:
    """Measure the time to the first token of a prompt."""
    vocab = SHAPES[shape]["vocab_size"]
    times = [_run(llm, params, _prompts(1, lambda: length, vocab, seed), [1]) for seed in range(5)]
    seconds = sorted(times[1:])[1]
    rate = prefill_flops(SHAPES[shape], length) / seconds / 1e12
    return {"ms": 1e3 * seconds, "tflop_s": rate, "share_of_matmul": rate / matmul_tflop_s}


def offline(llm: Any, params: Any, shape: str, count: int, length: int, output: int) -> Numbers:
    """Measure the output tokens per second of many requests of one size."""
    vocab = SHAPES[shape]["vocab_size"]
    first = min(count, 512)
    _run(llm, params, _prompts(first, lambda: min(length, 128), vocab, 1), [4] * first)
    seconds = _run(llm, params, _prompts(count, lambda: length, vocab), [output] * count)
    return {"requests": count, "seconds": seconds, "output_tokens_s": count * output / seconds}


def mixed(llm: Any, params: Any, shape: str, count: int = 256) -> Numbers:
    """Measure requests of 100 to 1,024 tokens in and out."""
    rng, vocab = random.Random(0), SHAPES[shape]["vocab_size"]
    prompts = _prompts(count, lambda: rng.randint(100, 1024), vocab)
    outputs = [rng.randint(100, 1024) for _ in prompts]
    seconds = _run(llm, params, prompts, outputs)
    return {"requests": count, "seconds": seconds, "output_tokens_s": sum(outputs) / seconds}


def attention(copy_tb_s: float, num_seqs: int = 64, context: int = 4096) -> Numbers:
    """Measure decode attention alone: 32 heads, 8 KV heads of 128, bf16, blocks of 16 tokens in random order."""
    from quire.ops.tactics import tactics_for

    (tactic, *_) = tactics_for("attention", "cuda")
    num_blocks = num_seqs * context // 16
    query = torch.randn(num_seqs, 32, 128, device="cuda", dtype=torch.bfloat16)
    cache = torch.randn(2, num_blocks, 8, 16, 128, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(num_blocks, device="cuda").view(num_seqs, -1).int()
    lens = torch.full((num_seqs,), context, device="cuda", dtype=torch.int32)
    starts = torch.arange(num_seqs + 1, device="cuda", dtype=torch.int32)
    arguments = {
        "query": query, "kv_cache": cache, "block_table": table, "seq_lens": lens, "query_start_loc": starts,
        "scale": 128**-0.5, "window": None, "kv_scales": None,
    }  # fmt: skip
    assert tactic.prepare is not None
    prepared = tactic.prepare(**arguments)
    graph = torch.cuda.CUDAGraph()
    tactic.run(*arguments.values(), prepared=prepared)
    with torch.cuda.graph(graph):
        for _ in range(8):
            tactic.run(*arguments.values(), prepared=prepared)
    ms = median_ms(graph.replay) / 8
    tb_s = cache.nbytes / ms / 1e9
    return {"us": 1e3 * ms, "tb_s": tb_s, "share_of_copy": tb_s / copy_tb_s}


def load(seconds: float, read_seconds: float) -> Numbers:
    """Return what loading took."""
    return {"seconds": seconds, "read_seconds": read_seconds, "beyond_reading_s": seconds - read_seconds}
