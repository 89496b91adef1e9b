"""The promises of the engine as scenarios, for any model on any device: bits must not depend on what else runs, or how.

A scenario takes `load`, which makes an `LLM` from fields of `EngineConfig`, and requests.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from quire import LLM, SamplingParams
from quire.core.config import EngineConfig
from quire.core.request import Request
from quire.engine.engine_loop import EngineLoop
from quire.plan.plan import Plan
from quire.server.engine.settings import embedding_params

Load = Callable[..., LLM]
Prompts = list[list[int]]


def prompts(count: int, seed: int = 0, low: int = 1, high: int = 60, vocab_size: int = 211) -> Prompts:
    """Return random prompts of `low` to `high` tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(low, high))] for _ in range(count)]


def params(index: int = 0, **more: Any) -> SamplingParams:
    """Return a mix of greedy and random, with logprobs, so that a changed bit shows."""
    chosen = {"temperature": 0.0} if index % 3 == 0 else {"temperature": 0.9, "top_p": 0.9, "seed": index}
    return SamplingParams(**{"max_tokens": 5 + index % 11, "logprobs": 3, "detokenize": False, **chosen, **more})


KINDS = (
    SamplingParams(temperature=0.0, max_tokens=3, logprobs=2, detokenize=False),
    SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=3, detokenize=False),
    SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=2, detokenize=False),
    SamplingParams(temperature=0.0, max_tokens=3, repetition_penalty=1.5, frequency_penalty=0.5, detokenize=False),
    SamplingParams(temperature=0.8, seed=1, max_tokens=2, logit_bias={5: 8.0, 6: 8.5}, logprobs=1, detokenize=False),
    SamplingParams(temperature=0.0, max_tokens=2, allowed_token_ids=[7, 9, 40], detokenize=False),
)
"""One request of each kind that the sampler knows."""


def bits(output) -> tuple:
    """Return everything that a caller can see of a request's result."""
    return [(c.token_ids, c.logprobs, c.cumulative_logprob, c.finish_reason) for c in output.outputs], (
        output.prompt_logprobs
    )


def assert_same(found: Sequence[tuple], expected: Sequence[tuple], what: str) -> None:
    """Check the bits of requests, and say where the first differ."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        place = _difference(one, other)
        assert not place, f"{what}, request {index}: {place}"


def _difference(found: Any, expected: Any) -> str:
    """Return where two nested results first differ, and how; empty if they do not."""
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)) and len(found) == len(expected):
        places = ((index, _difference(*pair)) for index, pair in enumerate(zip(found, expected, strict=True)))
        return next((f"[{index}]{place}" for index, place in places if place), "")
    return "" if found == expected else f": {found!r}, not {expected!r}"


def run(llm: LLM, batch: Prompts, wanted: Sequence[SamplingParams]) -> list[tuple]:
    """Return the bits of each request of a batch."""
    return [bits(output) for output in llm.generate(batch, wanted, use_tqdm=False)]


def run_alone(llm: LLM, batch: Prompts, wanted: Sequence[SamplingParams]) -> list[tuple]:
    """Return the bits of each request, one after the other."""
    return [run(llm, [prompt], [each])[0] for prompt, each in zip(batch, wanted, strict=True)]


def batched_is_alone(load: Load, batch: Prompts, wanted: Sequence[SamplingParams], sizes: Sequence[int]) -> None:
    """Check batches of the first requests, and all of them in another order."""
    with load(enable_prefix_caching=False) as llm:
        alone = run_alone(llm, batch, wanted)
        for size in sizes:
            assert_same(run(llm, batch[:size], wanted[:size]), alone[:size], f"a batch of {size}")
        order = random.Random(1).sample(range(len(batch)), len(batch))
        shuffled = run(llm, [batch[i] for i in order], [wanted[i] for i in order])
        assert_same(shuffled, [alone[i] for i in order], "in another order")


def prefix_cached_is_cold(load: Load, batch: Prompts, wanted: Sequence[SamplingParams]) -> None:
    """Check prompts, all longer than a block, that find their prefixes in the cache."""
    with load(enable_prefix_caching=False) as llm:
        cold = run(llm, batch, wanted)
    with load() as llm:
        assert_same(run(llm, batch, wanted), cold, "the first to be cached")
        again = llm.generate(batch, wanted, use_tqdm=False)
        assert_same([bits(o) for o in again], cold, "cached")
        assert all(o.num_cached_tokens > 0 for o in again)
        assert llm.get_metrics()["prefix_cache_hits"] > 0
        llm.reset_prefix_cache()
        assert llm.generate(batch[0], wanted[0], use_tqdm=False)[0].num_cached_tokens == 0


def chunked_is_whole(load: Load, batch: Prompts, wanted: Sequence[SamplingParams], budgets: Sequence[int]) -> None:
    """Check token budgets that split prompts, and no splitting at all."""
    with load(max_num_batched_tokens=2048) as llm:
        whole = run(llm, batch, wanted)
    for budget in budgets:
        with load(max_num_batched_tokens=budget) as llm:
            assert_same(run(llm, batch, wanted), whole, f"a budget of {budget} tokens")
    with load(enable_chunked_prefill=False, max_num_batched_tokens=100) as llm:
        assert_same(run(llm, batch, wanted), whole, "no prompt in chunks")


def preempted_is_undisturbed(load: Load, batch: Prompts, wanted: Sequence[SamplingParams], num_blocks: int) -> None:
    """Check a KV cache of so few blocks that rows have to start over."""
    with load() as llm:
        undisturbed = run(llm, batch, wanted)
        assert llm.get_metrics()["num_preemptions"] == 0
        block_bytes, block_size = llm._engine.loop.memory.kv_bytes_per_block, llm._engine.loop.memory.block_size
    few = {"kv_cache_memory_bytes": num_blocks * block_bytes, "max_model_len": (num_blocks - 1) * block_size}
    with load(**few) as llm:
        assert_same(run(llm, batch, wanted), undisturbed, "preempted")
        assert llm.get_metrics()["num_preemptions"] > 0
        llm._engine.loop.scheduler.check_integrity()


def samples_are_requests(load: Load, prompt: list[int], many: SamplingParams) -> None:
    """Check the samples of one request against requests of their own, with the seeds that follow from its seed."""
    with load() as llm:
        together = bits(llm.generate(prompt, many, use_tqdm=False)[0])[0]
    with load(enable_prefix_caching=False) as llm:
        each = [llm.generate(prompt, many.for_sample(i), use_tqdm=False)[0] for i in range(many.n)]
    assert together == [bits(output)[0][0] for output in each]
    assert len({tuple(sample[0]) for sample in together}) > 1, "different seeds should differ"


def streamed_is_whole(llm: LLM, batch: Prompts, wanted: Sequence[SamplingParams]) -> None:
    """Check the pieces of each request against all of it at once."""
    for prompt, each in zip(batch, wanted, strict=True):
        whole = llm.generate(prompt, each, use_tqdm=False)[0].outputs[0]
        pieces = [output.outputs[0] for output in llm.stream(prompt, each)]
        assert [t for piece in pieces for t in piece.token_ids] == whole.token_ids
        assert [entry for piece in pieces for entry in piece.logprobs] == whole.logprobs
        assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]


def vectors(plan: Plan, pooling: str, batch: Prompts, **options: Any) -> tuple[list[tuple[float, ...]], float]:
    """Return each prompt's pooled hidden states, all computed at once, and how often one had to start over."""
    loop = EngineLoop(plan, EngineConfig(**{"kv_cache_memory_bytes": 1 << 22, **options}))
    for number, ids in enumerate(batch):
        loop.add(Request(str(number), tuple(ids), embedding_params(pooling), pooling=pooling))
    found = {}
    while loop.has_unfinished():
        found |= {update.request_id: update.embedding for update in loop.step() if update.embedding is not None}
    loop.scheduler.check_integrity()
    num_preemptions = loop.metrics()["num_preemptions"]
    loop.close()
    return [found[str(number)] for number in range(len(batch))], num_preemptions
