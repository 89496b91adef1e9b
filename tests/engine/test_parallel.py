"""A model on several ranks says what it says on one; what may go wrong with a process is an error of every request."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import ConfigError, PlanError, WorkerError
from quire.core.request import Request
from quire.distributed.tensors.communicator import WHOLE_BYTES
from quire.distributed.workers import PING_INTERVAL_S, WorkerGroup
from quire.engine.engine_loop import EngineLoop
from quire.server.engine.settings import embedding_params
from quire.sharding.cost import layout_costs
from tests.support import equalities
from tests.support.dummy_models import FAMILIES, LLAMA, write_model
from tests.support.equalities import params, prompts

LAYOUTS = ((2, 1), (1, 2), (2, 2))
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, detokenize=False)
SHARED = {**LLAMA, "vocab_size": 212, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


def load(path: Path | str, layout: tuple[int, int] = (1, 1), dtype: str = "float32", **options: object) -> LLM:
    settings = {
        "device": "cpu",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 4 << 20,
        **options,
    }
    tp_size, pp_size = layout
    return LLM(path, dtype=dtype, tensor_parallel_size=tp_size, pipeline_parallel_size=pp_size, **settings)


def tokens(llm: LLM, batch: list[list[int]], wanted: SamplingParams = GREEDY) -> list[list[list[int]]]:
    outputs = llm.generate(batch, wanted, use_tqdm=False)
    return [[sample.token_ids for sample in output.outputs] for output in outputs]


def pids_of(llm: LLM) -> list[int]:
    return llm._engine.loop.runner.pids


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def open_sockets() -> list[str]:
    paths = Path("/proc/self/fd").iterdir()
    return sorted(str(path.readlink()) for path in paths if path.is_symlink() and "socket:" in str(path.readlink()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "llama", SHARED)


def test_two_ranks_are_one(model):
    """One start for much of what must hold: it takes seconds."""
    batch = prompts(6, seed=3, low=20, high=40)
    many = SamplingParams(n=3, temperature=0.0, max_tokens=8, logprobs=2, detokenize=False)
    with load(model) as llm:
        expected = tokens(llm, batch), tokens(llm, batch[:2], many)
    sockets = open_sockets()
    with load(model, (2, 1)) as llm:
        assert (tokens(llm, batch), tokens(llm, batch[:2], many)) == expected
        assert llm.generate(batch[0], GREEDY, use_tqdm=False)[0].num_cached_tokens >= 16
        pieces = llm.stream(batch[1], GREEDY)
        first = next(pieces).outputs[0].token_ids
        pieces.close()
        assert first and not llm._engine.has_unfinished_requests(), "aborted"
        llm.reset_prefix_cache()
        llm.sleep(2)
        llm.wake_up()
        assert tokens(llm, batch) == expected[0]
        assert llm.get_metrics()["communication_calls"] > 0
        pids = pids_of(llm)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"(?s)rank 1 of 2.*exit code -9.*layers, .* of weights"):
            tokens(llm, batch)
        with pytest.raises(WorkerError, match="rank 1 of 2"):
            tokens(llm, batch)
    assert not any(map(is_alive, pids)) and open_sockets() == sockets


def test_only_the_first_rank_tells_of_its_progress(model, monkeypatch):
    """Nobody reads what others send until the first is ready: told often enough, they would wait for that for ever."""
    frames = {0: [], 1: []}
    receive = WorkerGroup.receive

    def noted(group, rank):
        frame = receive(group, rank)
        frames[rank].append(msgspec.msgpack.decode(frame)["type"])
        return frame

    monkeypatch.setattr(WorkerGroup, "receive", noted)
    with load(model, (2, 1)):
        assert frames[0].count("Progress") > 4
        assert frames[1] == ["Opened", "Ready"]


def test_impossible_layouts_are_refused(model):
    with pytest.raises(ConfigError, match="expected one of 1, 2, 4 for 4 query heads"):
        load(model, (3, 1))
    with pytest.raises(ConfigError, match="at most the 4 layers there are, got 5"):
        load(model, (1, 5))
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        load(model, (2, 1), distributed_executor_backend="external_launcher")
    with pytest.raises(ConfigError, match="expected one of mp, ray, external_launcher"):
        load(model, (2, 1), distributed_executor_backend="slurm")
    with pytest.raises(ConfigError, match="pp_partition: expected 4 layers in all, got 1, 2"):
        load(model, (1, 2), pipeline_partition="1,2")
    for wrong in ("even", "1,2,1", "0,4", 3):
        with pytest.raises(ConfigError, match="pipeline_partition: expected 'balanced' or a number of layers for each"):
            load(model, (1, 2), pipeline_partition=wrong)


@pytest.mark.multi
@pytest.mark.parametrize("partition", ("balanced", "1, 3"))
def test_stages_of_other_sizes_say_the_same(model, partition):
    with load(model) as llm:
        expected = tokens(llm, prompts(4))
    with load(model, (1, 2), pipeline_partition=partition) as llm:
        assert tokens(llm, prompts(4)) == expected


@pytest.mark.multi
def test_settings_that_fit_no_rank_are_told_as_for_one(model):
    with pytest.raises(ConfigError, match="max_model_len"):
        load(model, (2, 1), max_model_len=512, kv_cache_memory_bytes=1 << 14)


@pytest.mark.multi
def test_what_is_wrong_with_a_rank_is_the_error_that_it_was_there(model, tmp_path):
    with load(model) as llm:
        llm.plan.save(tmp_path / "engine", copy_weights=True)
    weights = tmp_path / "engine" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 0xFF
    weights.write_bytes(data)
    with pytest.raises(PlanError, match=r"rank 0: .*weights.safetensors, tensor 'model.norm.weight': expected hash"):
        load(tmp_path / "engine", (2, 1), "auto", load_format="auto")


@pytest.mark.multi
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_all_families(tmp_path, family, layout):
    heads = {"gpt2": {"n_head": 4, "n_layer": 3}, "opt": {"num_attention_heads": 4, "num_hidden_layers": 3}}
    path = write_model(tmp_path / family, {**FAMILIES[family], **heads.get(family, {"num_hidden_layers": 3})})
    batch = prompts(8, seed=1, high=40)
    with load(path) as llm:
        expected = tokens(llm, batch)
    with load(path, layout) as llm:
        assert tokens(llm, batch) == expected


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
class TestEqualities:
    """Bit for bit within a layout, whatever else runs."""

    @pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
    def test_batched_is_alone(self, model, layout, dtype):
        wanted = [params(i) for i in range(16)]
        equalities.batched_is_alone(partial(load, model, layout, dtype), prompts(16), wanted, (16, 7))

    def test_prefix_cached_is_cold(self, model, layout):
        common = prompts(1, seed=5, low=70, high=70)[0]
        batch = [common + p for p in prompts(6, seed=6, high=30)] + [common[:33], common]
        equalities.prefix_cached_is_cold(partial(load, model, layout), batch, [params(i) for i in range(8)])

    def test_chunked_is_whole(self, model, layout):
        batch = prompts(6, seed=7, low=3, high=80)
        wanted = [params(i, prompt_logprobs=2 if i == 1 else None) for i in range(len(batch))]
        equalities.chunked_is_whole(partial(load, model, layout), batch, wanted, (7, 64))

    def test_preempted_is_undisturbed(self, model, layout):
        batch = prompts(10, seed=8, low=20, high=50)
        wanted = [params(i, max_tokens=40, ignore_eos=True) for i in range(len(batch))]
        equalities.preempted_is_undisturbed(partial(load, model, layout), batch, wanted, num_blocks=17)

    def test_samples_are_requests_with_derived_seeds(self, model, layout):
        prompt = prompts(1, seed=17, low=17, high=17)[0]
        many = SamplingParams(n=5, temperature=1.0, seed=11, max_tokens=20, logprobs=2, detokenize=False)
        equalities.samples_are_requests(partial(load, model, layout), prompt, many)

    def test_streamed_is_whole(self, model, layout):
        with load(model, layout) as llm:
            equalities.streamed_is_whole(llm, prompts(3, seed=12), [params(i) for i in range(3)])


QUANTIZED = {
    "w8a16": {"quantization": "w8a16"},
    "w8a8": {"quantization": "w8a8"},
    "fp8": {"quantization": "fp8"},
    "w4a16": {"quantization": "w4a16", "group_size": 64},
    "int8 cache": {"kv_cache_dtype": "int8"},
}


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_quantized(tmp_path, scheme, layout):
    wide = {**SHARED, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    few = {"num_calibration_samples": 3, "calibration_length": 16, "max_kl": 1e9}
    batch = prompts(6, seed=1, high=30)
    with load(write_model(tmp_path / "wide", wide), **few, **QUANTIZED[scheme]) as llm:
        expected = tokens(llm, batch)
        llm.plan.save(tmp_path / "engine")
    with load(tmp_path / "engine", layout, "auto", load_format="auto") as llm:
        assert tokens(llm, batch) == expected
        assert [tokens(llm, [each])[0] for each in batch[:2]] == expected[:2]


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpu_ranks_are_one(tmp_path, gpu, layout):
    """On a GPU, or its kernels interpreted: tokens wait there for the host only where stages must learn them."""
    model = write_model(tmp_path / "llama", LLAMA)
    batch, few = [[3, 14, 15], [9, 2]], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, detokenize=False)
    options = {"device": gpu, "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 64}
    with load(model, **options) as llm:
        expected = tokens(llm, batch, few)
    with load(model, layout, **options) as llm:
        assert tokens(llm, batch, few) == expected


@pytest.mark.multi
@pytest.mark.parametrize("layout", ((2, 1), (1, 2)))
def test_structured_outputs(layout):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = SamplingParams(temperature=0.0, max_tokens=24, structured_outputs=StructuredOutputsParams(json=schema))
    with LLM("quire-tiny", dtype="float32", max_num_seqs=8, kv_cache_memory_bytes=64 << 20) as llm:
        expected = [output.outputs[0].text for output in llm.generate(["{", "As JSON:"], asked, use_tqdm=False)]
    tp_size, pp_size = layout
    sizes = {"tensor_parallel_size": tp_size, "pipeline_parallel_size": pp_size}
    with LLM("quire-tiny", dtype="float32", max_num_seqs=8, kv_cache_memory_bytes=64 << 20, **sizes) as llm:
        found = [output.outputs[0].text for output in llm.generate(["{", "As JSON:"], asked, use_tqdm=False)]
    assert found == expected and all(text.lstrip().startswith("{") for text in found)


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("sent", (signal.SIGKILL, signal.SIGSTOP))
def test_a_worker_lost_under_load_is_an_error_of_all(model, rank, sent):
    with load(model, (2, 2)) as llm:
        pids, lost_s = pids_of(llm), []

        def lose() -> None:
            os.kill(pids[rank], sent)
            lost_s.append(time.monotonic())

        threading.Timer(0.3 + 0.2 * rank, lose).start()
        long = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True, detokenize=False)
        with pytest.raises(WorkerError, match=f"rank {rank} of 4"):
            tokens(llm, prompts(64, seed=2), long)
        assert time.monotonic() - lost_s[0] < 5
        assert not llm._engine.has_unfinished_requests()
    assert not any(map(is_alive, pids))


@pytest.mark.multi
def test_workers_do_not_outlive_their_driver(model, tmp_path):
    """Killed, stopped before or not, it leaves neither processes nor files."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom tests.engine.test_parallel import load, pids_of\n"
        "llm = load(sys.argv[1], (2, 1))\nprint(*pids_of(llm), flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    driver = subprocess.Popen(
        [sys.executable, str(script), str(model)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert driver.stdout is not None
    with driver:
        pids = [int(word) for word in driver.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        os.kill(pids[1], signal.SIGSTOP)
        driver.kill()
    deadline_s = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(map(is_alive, pids)) and not list((tmp_path / "scratch").iterdir())


@pytest.mark.multi
@pytest.mark.parametrize("layout", ((2, 1), (1, 2)))
def test_embeddings(model, layout):
    plan = open_plan(model, BuildConfig(dtype="float32", load_format="dummy"))
    found = []
    for tp_size, pp_size in ((1, 1), layout):
        sizes = {"tensor_parallel_size": tp_size, "pipeline_parallel_size": pp_size}
        loop = EngineLoop(
            plan, EngineConfig(device="cpu", max_num_batched_tokens=8, kv_cache_memory_bytes=1 << 20, **sizes)
        )
        for pooling in ("mean", "last"):
            loop.add(Request(pooling, tuple(range(1, 20)), embedding_params(pooling), pooling=pooling))
        updates = []
        while loop.has_unfinished():
            updates += loop.step()
        found.append({u.request_id: u.embedding for u in updates if u.embedding is not None})
        loop.close()
    assert found[0].keys() == found[1].keys() == {"mean", "last"}
    for pooling, vector in found[0].items():
        assert vector == pytest.approx(found[1][pooling], abs=1e-5)


@pytest.mark.multi
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_that_ranks_send_are_those_of_the_layout(model, layout):
    with load(model, layout) as llm:
        costs, rows = layout_costs(llm.plan, *layout), ((5, 1), (1, 1), (1, 1))  # tokens and logits of each step
        llm.generate([[1, 2, 3, 4, 5]], SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False), use_tqdm=False)
        time.sleep(2 * PING_INTERVAL_S)  # workers say what they have done when they are asked whether they live
        sent = llm.get_metrics()["communication_bytes"]
    assert sent == sum(cost.sent_bytes(*each, WHOLE_BYTES["cpu"]) for cost in costs for each in rows)
    least = sum(cost.least_bytes(*each) for cost in costs for each in rows)
    assert least <= sent <= least * layout[0], "of two ranks a tensor goes to both of the next stage"


@pytest.mark.multi
def test_torchrun(model, tmp_path):
    """Every process runs the script; the first one drives, the others leave in the middle of it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom tests.engine.test_parallel import load, prompts, tokens\n"
        "with load(sys.argv[1], (2, 1), distributed_executor_backend='external_launcher') as llm:\n"
        "    print(tokens(llm, prompts(4)))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(script), str(model)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    with load(model) as llm:
        assert done.stdout.splitlines() == [str(tokens(llm, prompts(4)))]
