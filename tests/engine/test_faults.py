"""A fault in one row, wherever it is, ends that row: the others get the same ids and logprobs as without it."""

from dataclasses import replace

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.runner.execution.executor import Executor
from quire.runner.inputs import InputBuilder
from quire.sampling.grammar.state import GrammarState
from quire.sampling.row import SamplingRow
from quire.scheduler.row import Row
from quire.tokenizer.detokenizer import IncrementalDetokenizer
from quire.tokenizer.stop_checker import StopChecker

NUM_ROWS, VICTIM = 8, 3
MARK = 4242
"""The victim's seed."""


def raises_for(is_victim, method, num_good_calls):
    """A method that fails for the victim, from some call on."""
    calls = []

    def run(self, *arguments, **named):
        if is_victim(self, *arguments):
            calls.append(self)
            if len(calls) > num_good_calls:
                raise KeyError("injected")
        return method(self, *arguments, **named)

    return run


def is_sampled(row, *_):
    return row.params.seed == MARK


def is_victim_row(row):
    return row.sampling.params.seed == MARK


NUM_GOOD_CALLS = {"new row": 0}
FAULTS = {
    "sampler": (SamplingRow, "banned_ids", is_sampled),
    "what was sampled": (SamplingRow, "append", is_sampled),
    "grammar": (GrammarState, "mask", lambda state, *_: True),
    "detokenizer": (IncrementalDetokenizer, "append", lambda made, *_: made.is_marked),
    "stop strings": (StopChecker, "append", lambda checker, *_: "never said" in checker._stop),
    "new row": (SamplingRow, "__init__", lambda row, params, *_: params.seed == MARK),
    "layout": (InputBuilder, "build", lambda builder, shares, rows, *_: any(map(is_victim_row, rows))),
    "stop tokens": (Row, "accept", lambda row, *_: row.params.seed == MARK),
}


@pytest.fixture(scope="module")
def llm():
    with LLM("quire-tiny", max_model_len=256, max_num_seqs=NUM_ROWS) as made:
        yield made


def params(index):
    """Parameters of one row; the victim has all that can fail."""
    common = SamplingParams(temperature=0.9, seed=index, max_tokens=12, logprobs=2, bad_words=["zebra"])
    if index != VICTIM:
        return replace(common, ignore_eos=True)
    form = StructuredOutputsParams(regex="[a-z ]{40}")
    return replace(common, seed=MARK, stop=["never said"], structured_outputs=form)


def run(llm):
    prompts = [f"Row {index}: once upon a time" for index in range(NUM_ROWS)]
    outputs = llm.generate(prompts, [params(index) for index in range(NUM_ROWS)], use_tqdm=False)
    return [output.outputs[0] for output in outputs]


@pytest.fixture(scope="module")
def clean(llm):
    return run(llm)


@pytest.mark.parametrize("fault", FAULTS)
def test_only_the_row_at_fault_ends(llm, clean, monkeypatch, fault):
    assert all(row.finish_reason in ("length", "stop") for row in clean)
    owner, name, is_victim = FAULTS[fault]
    if owner is IncrementalDetokenizer:
        made = IncrementalDetokenizer.__init__
        monkeypatch.setattr(owner, "is_marked", False, raising=False)
        victims = llm.get_tokenizer().encode(f"Row {VICTIM}: once upon a time")

        def mark(self, *arguments, prompt_token_ids, **named):
            made(self, *arguments, prompt_token_ids=prompt_token_ids, **named)
            self.is_marked = list(prompt_token_ids) == list(victims)

        monkeypatch.setattr(owner, "__init__", mark)
    monkeypatch.setattr(owner, name, raises_for(is_victim, getattr(owner, name), NUM_GOOD_CALLS.get(fault, 2)))
    found = run(llm)
    assert found[VICTIM].finish_reason == "error" and "KeyError" in found[VICTIM].stop_reason
    for index in range(NUM_ROWS):
        if index != VICTIM:
            assert (found[index].token_ids, found[index].logprobs) == (clean[index].token_ids, clean[index].logprobs)
    llm._engine.loop.scheduler.check_integrity()
    assert not llm._engine.has_unfinished_requests()
    monkeypatch.undo()
    assert run(llm)[VICTIM] == clean[VICTIM], "nothing of it stays"


def computing(llm, monkeypatch, fails):
    """Have a step fail in the network if `fails` says so of its rows."""
    build, compute, batch = InputBuilder.build, Executor.run, []

    def lay_out(self, shares, rows, tables):
        batch[:] = rows
        return build(self, shares, rows, tables)

    def run_network(self, inputs):
        if fails(batch):
            raise KeyError("injected")
        return compute(self, inputs)

    monkeypatch.setattr(InputBuilder, "build", lay_out)
    monkeypatch.setattr(Executor, "run", run_network)


def test_only_the_row_that_cannot_be_computed_ends(llm, clean, monkeypatch):
    computing(llm, monkeypatch, lambda rows: any(map(is_victim_row, rows)) and len(rows[0].token_ids) > 14)
    found = run(llm)
    assert found[VICTIM].finish_reason == "error" and "KeyError" in found[VICTIM].stop_reason
    others = [index for index in range(NUM_ROWS) if index != VICTIM]
    assert [found[index] for index in others] == [clean[index] for index in others]
    llm._engine.loop.scheduler.check_integrity()


def test_rows_that_cannot_be_computed_together_are_computed_alone(llm, clean, monkeypatch):
    computing(llm, monkeypatch, lambda rows: len(rows) > 1)
    assert run(llm) == clean


def test_a_step_that_fails_ends_its_rows_and_many_end_the_loop(llm, clean, monkeypatch):
    num_failing = [4]

    def fails(rows):
        num_failing[0] -= len(rows) == NUM_ROWS
        return num_failing[0] >= 0

    llm._engine.loop._num_failed = 0
    computing(llm, monkeypatch, fails)
    for _ in range(4):
        assert {row.finish_reason for row in run(llm)} == {"error"}
    assert run(llm) == clean and llm._engine.loop._num_failed == 0
    num_failing[0] = 1000
    for _ in range(4):
        run(llm)
    with pytest.raises(KeyError, match="injected"):
        run(llm)
    monkeypatch.undo()
    llm._engine.loop.close()
