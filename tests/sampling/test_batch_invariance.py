"""A row's result is the same bits alone, in any batch, at any position, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.sampling_params import SamplingParams
from quire.sampling import sampler
from quire.sampling.logprobs import prompt_logprobs
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

pytestmark = pytest.mark.usefixtures("way")

# 33,000 and 151,936 pass the 32,768 elements from which torch splits a lone row over threads.
VOCABS = (1, 7, 1000, 4099, 33000)

PARAMS = st.fixed_dictionaries(
    {"seed": st.integers(0, (1 << 64) - 1)},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 3, 50, 129, 2000]),
        "top_p": st.sampled_from([1.0, 0.2, 0.95, 0.999]),
        "min_p": st.sampled_from([0.0, 0.01, 0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.1]),
        "frequency_penalty": st.sampled_from([0.0, 0.4]),
        "logit_bias": st.just({0: 3.0}),
        "logprobs": st.sampled_from([0, 1, 3, 20]),
    },
)
ROW = st.tuples(PARAMS, st.integers(0, 1 << 20), st.integers(0, 3), st.sampled_from([0.05, 1.0, 4.0]))


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(vocab_size: int, specs: list, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list[SamplingRow]]:
    """Return logits (some flat, some peaked, some full of ties) and rows."""
    logits = torch.empty(len(specs), vocab_size)
    rows = []
    for index, (params, seed, num_output, spread) in enumerate(specs):
        generator = torch.Generator().manual_seed(seed)
        logits[index] = torch.randn(vocab_size, generator=generator) * spread
        output = [(seed + 7 * i) % vocab_size for i in range(num_output)]
        rows.append(SamplingRow(SamplingParams(**params), [0, vocab_size - 1], output))
    return logits.to(dtype), rows


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.sampled_from(VOCABS), st.lists(ROW, min_size=1, max_size=9), st.data())
def test_alone_equals_any_order_of_any_batch(vocab_size: int, specs: list, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    logits, rows = make(vocab_size, specs, dtype)
    alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    order = data.draw(st.permutations(range(len(rows))))
    order = order[: data.draw(st.integers(1, len(order)))]
    assert sample(logits[order], [rows[index] for index in order]) == [alone[index] for index in order]


def mixed_specs(num_rows: int) -> list:
    kinds = [
        {},
        {"temperature": 0.0, "logprobs": 5},
        {"temperature": 0.8, "top_p": 0.95, "logprobs": 2},
        {"top_k": 50},
        {"top_p": 0.999, "temperature": 1.5, "logprobs": 0},
        {"min_p": 0.05, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"top_k": 300, "top_p": 0.9},
    ]
    return [({"seed": i, **kinds[i % len(kinds)]}, i, i % 4, (0.02, 1.0, 3.0)[i % 3]) for i in range(num_rows)]


@pytest.mark.parametrize("vocab_size", [33000, 151936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_batch_do_not_change_a_bit(threads: None, vocab_size: int, dtype: torch.dtype) -> None:
    logits, rows = make(vocab_size, mixed_specs(14), dtype)
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(sample(logits, rows))
        results.append([sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)])
    assert all(result == results[0] for result in results)
    assert all(result.error is None for result in results[0])


def test_chunks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, rows = make(1000, mixed_specs(40))
    whole = sample(logits, rows)
    for elements in (1, 3000, 7001):
        monkeypatch.setattr(sampler, "CHUNK_ELEMENTS", elements)
        assert sample(logits, rows) == whole


def test_memory_layout_does_not_change_a_bit() -> None:
    logits, rows = make(1001, mixed_specs(14))
    whole = sample(logits, rows)
    wide = torch.full((14, 1010), 50.0)
    wide[:, 3:1004] = logits
    assert sample(wide[:, 3:1004], rows) == whole
    assert sample(logits.t().contiguous().t(), rows) == whole


@pytest.mark.parametrize("vocab_size", [1000, 33000])
def test_prompt_logprobs_do_not_depend_on_how_the_prompt_was_cut(threads: None, vocab_size: int) -> None:
    logits, _ = make(vocab_size, mixed_specs(9), torch.bfloat16)
    next_ids = [(31 * i) % vocab_size for i in range(9)]
    whole = prompt_logprobs(logits, next_ids, 4)
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for cut in (1, 2, 4):
            pieces = []
            for i in range(0, 9, cut):
                pieces += prompt_logprobs(logits[i : i + cut], next_ids[i : i + cut], 4)
            assert pieces == whole
