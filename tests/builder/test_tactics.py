"""Tuning for a GPU: what is timed, what is recorded, and which of it a load may use. The clock is made up."""

import pytest
import torch

from quire import LLM, SamplingParams
from quire.builder import tactics
from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.plan.device import this_device
from quire.plan.plan import Plan
from quire.plan.tactics import choices, unusable, write_tactics
from tests.support.dummy_models import LLAMA, write_model


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("model"), {**LLAMA, "hidden_size": 64, "intermediate_size": 128})
    return open_plan(model, BuildConfig(load_format="dummy", dtype="bfloat16"))


@pytest.fixture
def measured(gpu, plan, monkeypatch):
    """Records for two numbers of rows; a vendor's tactic takes half the time of any other."""

    def seconds(run, count):
        run()
        names = [cell.cell_contents for cell in run.__closure__ if hasattr(cell.cell_contents, "keeps_bits")]
        return 1e-6 if all(tactic.keeps_bits for tactic in names) else 5e-7

    monkeypatch.setattr(tactics, "_device_seconds", seconds)
    monkeypatch.setattr(tactics, "ROWS", {"cuda": (1, 3)})
    return tactics.tune(plan.network, gpu)


def test_tactics_of_a_gpu_are_timed_whether_they_keep_bits_or_not(measured):
    assert measured.device == this_device("cuda") and measured.rows == (1, 3)
    products = [record for record in measured.records if record.call.startswith("linear(")]
    assert len(products) > 3
    for record in products:
        assert record.times_us == {"triton": (1.0, 1.0), "cublas": (0.5, 0.5)} and record.chosen == "triton"


def test_what_does_not_keep_bits_is_used_only_where_that_is_allowed(measured, plan):
    device = this_device("cuda")
    kept, fast = (choices([measured], device, plan.network, deterministic=wanted) for wanted in (True, False))
    for record in measured.records:
        if record.call.startswith("linear("):
            assert (kept[record.call], fast[record.call]) == ("triton", "cublas")
    assert not unusable([measured], device, plan.network)
    assert not unusable([measured], device, plan.network, deterministic=False)


def test_a_tuned_engine_has_the_answers_of_one_that_is_not(gpu, measured, plan, tmp_path):
    plan.save(tmp_path / "engine")
    write_tactics(tmp_path / "engine", measured)
    assert Plan.load(tmp_path / "engine").tactics == (measured,)
    outcomes = []
    for engine in (plan, tmp_path / "engine"):
        greedy = SamplingParams(temperature=0.0, max_tokens=3, detokenize=False)
        options = {"device": gpu, "max_num_seqs": 2, "kv_cache_memory_bytes": 1 << 20}
        with LLM(engine, skip_tokenizer_init=True, **options) as llm:
            outcomes.append([o.outputs[0].token_ids for o in llm.generate([[3, 1, 4]], greedy, use_tqdm=False)])
    assert outcomes[0] == outcomes[1]


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock(plan):
    found = tactics.tune(plan.network, "cuda")
    times = [time for record in found.records for each in record.times_us.values() for time in each]
    assert found.records and all(0.5 < time < 1e4 for time in times), "microseconds of kernels"
    assert torch.cuda.is_available() and found.device.name == torch.cuda.get_device_name()
