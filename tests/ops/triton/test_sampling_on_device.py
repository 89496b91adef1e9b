"""The device chooses what the CPU's sampler chooses, whatever else is in the batch, and counts its tokens itself."""

import dataclasses

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from quire.core.errors import RequestError
from quire.core.sampling_params import SamplingParams
from quire.ops.triton.step import sampling as kernels
from quire.sampling.device import SamplingState, kinds_of, state_bytes, tokens_of
from quire.sampling.row import SamplingRow
from quire.sampling.sampler import sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB_SIZE = 150
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several programs for each row of a small vocabulary."""
    monkeypatch.setattr(kernels, "_BLOCK", 64)
    if (
        DEVICE == "cpu"
    ):  # Triton's language is patched for a kernel; again for each function in it took most of the time
        call = lambda function, *args, **kwargs: function.rewrite()(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(InterpretedFunction, "__call__", call)


def logits_of(num_rows, vocab_size=VOCAB_SIZE, seed=0, scale=3.0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab_size, generator=generator) * scale).to(dtype)


def row_of(params, prompt=(1, 2, 2), output=(), **options):
    return SamplingRow(params, prompt, output, **options)


def on_host(sampled):
    fields = {f.name: getattr(sampled, f.name) for f in dataclasses.fields(sampled)}
    return kernels.Sampled(**{name: None if t is None else t.cpu() for name, t in fields.items()})


def state_of(rows, slots=None, max_rows=None):
    slots = range(len(rows)) if slots is None else slots
    state = SamplingState(max_rows or max(slots) + 1, VOCAB_SIZE, DEVICE)
    for slot, row in zip(slots, rows, strict=True):
        state.set_row(slot, row)
    return state


def draw(state, logits, rows, slots=None, kinds=None):
    slots = torch.tensor(list(range(len(rows)) if slots is None else slots), dtype=torch.int32, device=DEVICE)
    edits = state.edits_of(dict(enumerate(rows)))
    return on_host(state.sample(logits.to(DEVICE), slots, kinds or kinds_of(rows), edits))


def same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert (one.token_id, one.error is None) == (other.token_id, other.error is None), (one, other)
        if other.logprobs is not None:
            assert one.logprobs.token_ids == other.logprobs.token_ids and one.logprobs.ranks == other.logprobs.ranks
            assert one.logprobs.logprobs == pytest.approx(other.logprobs.logprobs, abs=1e-5)


def follows(rows, num_steps=2, **options):
    """Both samplers agree for some steps, each counting what it chose itself."""
    state = state_of(rows)
    for step in range(num_steps):
        logits = logits_of(len(rows), seed=step, **options)
        expected = sample(logits, rows)
        same(tokens_of(draw(state, logits, rows), rows), expected)
        for row, result in zip(rows, expected, strict=True):
            row.append(result.token_id)


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": VOCAB_SIZE - 1},
    {"top_k": VOCAB_SIZE},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"top_p": 0.9999, "temperature": 2.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.01, "temperature": 0.6},
    {"top_k": 120, "top_p": 0.99, "temperature": 1.7},
    {"top_p": 0.5, "temperature": 1e-4},
]
SEEDS = (0, -7, (1 << 64) - 1, 1 << 63, 12345)


def test_temperature_filters_and_seeds():
    params = [SamplingParams(seed=SEEDS[i % len(SEEDS)], **{"temperature": 1.0, **f}) for i, f in enumerate(FILTERS)]
    follows([row_of(p) for p in [*params, GREEDY]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_dtypes(dtype):
    follows([row_of(SamplingParams(seed=3, top_p=0.8)), row_of(GREEDY)], num_steps=1, dtype=dtype)


def test_flat_and_steep_rows():
    rows = [row_of(SamplingParams(seed=i, top_p=p, top_k=k)) for i, (p, k) in enumerate([(0.9, 0), (0.5, 9), (1, 40)])]
    follows(rows, scale=0.0)
    follows(rows, scale=30.0)


def test_logprobs_before_edits():
    rows = [
        row_of(SamplingParams(temperature=0, logprobs=5, logit_bias={7: 100})),
        row_of(SamplingParams(seed=3, logprobs=0)),
        row_of(SamplingParams(seed=3, logprobs=20, top_k=9)),
        row_of(GREEDY),
    ]
    follows(rows)


def test_ties_in_order_of_id():
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[0, 70], logits[0, 5], logits[1, 100] = -0.0, -1.0, 2.0
    rows = [row_of(SamplingParams(temperature=0, logprobs=6))] * 2
    got = tokens_of(draw(state_of(rows), logits, rows), rows)
    same(got, sample(logits, rows))
    assert [token.token_id for token in got] == [0, 100]


def test_penalties_bias_bans_and_allowed_ids():
    params = [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 1.5, "presence_penalty": -0.5},
        {"repetition_penalty": 0.5, "presence_penalty": 2.0, "top_k": 5},
        {"logit_bias": {3: 5.0, 149: 8.0}},
        {"allowed_token_ids": [1, 65, 149], "logit_bias": {64: 100.0}},
        {"min_tokens": 2, "logit_bias": {4: 100.0}},
        {},
    ]
    rows = [
        row_of(
            SamplingParams(seed=i, max_tokens=9, **p), [4, 5, 9, 9], [7, 8, 8], stop_token_ids=[4] * ("min" in str(p))
        )
        for i, p in enumerate(params)
    ]
    rows += [row_of(GREEDY, bad_words_ids=[[5], [4, 7], [6, 1]]), row_of(GREEDY)]
    follows(rows, num_steps=3, scale=1.0)


def test_a_row_that_fails_fails_alone():
    logits = logits_of(6)
    logits[0, 149], logits[1, 3], logits[2], logits[4, 5] = float("nan"), float("inf"), -torch.inf, -torch.inf
    rows = [row_of(SamplingParams(seed=i, top_k=9, logprobs=2)) for i in range(5)]
    rows.append(row_of(SamplingParams(temperature=0, allowed_token_ids=[8]), bad_words_ids=[[8]]))
    state = state_of(rows)
    with np.errstate(invalid="ignore"):
        sampled = draw(state, logits, rows)
        expected = sample(logits, rows)
    assert sampled.statuses.tolist() == [1, 1, 2, 0, 0, 2]
    same(tokens_of(sampled, rows), expected)


def test_padding_and_slots_change_nothing():
    params = [SamplingParams(seed=i, **f) for i, f in enumerate(FILTERS[:9])]
    rows = [row_of(p) for p in params]
    logits = logits_of(len(rows))
    together = draw(state_of(rows), logits, rows)
    slots = [11, 3, -1, 0, -1, 5, -1, -1, 9]
    kept = [i for i, slot in enumerate(slots) if slot >= 0]
    state = state_of([rows[i] for i in kept], [slots[i] for i in kept], 12)
    apart = draw(state, logits, rows, slots)
    is_kept = torch.tensor(slots) >= 0
    assert torch.equal(apart.token_ids[is_kept], together.token_ids[is_kept])
    assert (apart.token_ids[~is_kept] == -1).all()
    assert not apart.statuses.any()


def test_a_row_is_the_same_alone_and_beside_any_kind():
    params = [{"logprobs": 3}, {"top_p": 0.8}, {"temperature": 0}, {"presence_penalty": 1.0, "logprobs": 20}]
    rows = [row_of(SamplingParams(**{"seed": i, **p})) for i, p in enumerate(params)]
    logits = logits_of(len(rows))
    together = draw(state_of(rows), logits, rows)
    for i, row in enumerate(rows):
        alone = draw(state_of([row]), logits[i : i + 1], [row])
        assert alone.token_ids[0] == together.token_ids[i]
        if alone.logprobs is not None:
            num = alone.logprobs.shape[1]
            assert torch.equal(alone.logprobs[0], together.logprobs[i, :num])
            assert torch.equal(alone.ranks[0], together.ranks[i, :num])


def test_logits_may_be_a_view():
    rows = [row_of(SamplingParams(seed=i, top_k=20, logprobs=1)) for i in range(3)]
    logits = logits_of(3, 512)
    got = draw(state_of(rows), logits.to(DEVICE)[:, :VOCAB_SIZE], rows)
    same(tokens_of(got, rows), sample(logits[:, :VOCAB_SIZE], rows))


def test_a_slot_is_used_again():
    first, second = row_of(SamplingParams(seed=1, presence_penalty=2.0)), row_of(SamplingParams(seed=2, top_k=3))
    third = row_of(SamplingParams(seed=5, frequency_penalty=2.0), output=[8, 8])
    state = state_of([first])
    for row in (first, second, third):
        state.set_row(0, row)
        logits = logits_of(1, scale=0.5)
        same(tokens_of(draw(state, logits, [row]), [row]), sample(logits, [row]))


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are a GPU's")
def test_steps_replay_from_a_graph():
    params = [{"temperature": 0}, {"top_p": 0.8}, {"top_k": 9, "presence_penalty": 1.5}, {"logprobs": 4}]
    rows = [row_of(SamplingParams(**{"seed": i, **p})) for i, p in enumerate(params)]
    logits, slots = logits_of(4).to(DEVICE), torch.arange(4, dtype=torch.int32, device=DEVICE)
    state, kinds, graph = state_of(rows), kinds_of(rows), torch.cuda.CUDAGraph()
    state.allocate_edits()
    state.sample(logits, slots, kinds)  # compiles, and counts a token: rows are set again
    for slot, row in enumerate(rows):
        state.set_row(slot, row)
    state.flush()
    with torch.cuda.graph(graph):
        sampled = state.sample(logits, slots, kinds)
    for step in range(4):
        logits.copy_(logits_of(4, seed=step))
        graph.replay()
        expected = sample(logits.cpu(), rows)
        same(tokens_of(on_host(sampled), rows), expected)
        for row, result in zip(rows, expected, strict=True):
            row.append(result.token_id)


def test_frequencies_are_the_probabilities():
    """Chi-square over six tokens: 20.5 is exceeded once in a thousand draws of all, and these seeds do not."""
    logits = torch.full((1, 6), 0.0)
    logits[0] = torch.tensor([0.0, 0.5, 1.0, -1.0, 2.0, -0.5])
    num = 200
    rows = [row_of(SamplingParams(seed=seed)) for seed in range(num)]
    state = SamplingState(num, 6, DEVICE)
    for slot, row in enumerate(rows):
        state.set_row(slot, row)
    counted = torch.bincount(draw(state, logits.expand(num, 6).contiguous(), rows).token_ids, minlength=6)
    expected = torch.softmax(logits[0], 0) * num
    assert ((counted - expected) ** 2 / expected).sum() < 20.5


def test_bytes_are_known_before():
    state = SamplingState(5, VOCAB_SIZE, DEVICE)
    state.allocate_edits()
    assert state.num_bytes() == state_bytes(5, VOCAB_SIZE)


def test_what_a_device_cannot_do_is_refused():
    state = SamplingState(2, VOCAB_SIZE, DEVICE)
    with pytest.raises(RequestError, match="at most 20"):
        state.set_row(0, row_of(SamplingParams(temperature=0, logprobs=21)))
    with pytest.raises(RequestError, match="logit_bias"):
        state.set_row(0, row_of(SamplingParams(temperature=0, logit_bias={VOCAB_SIZE: 1.0})))
