"""Engine directories: what is saved is what is loaded, and damage of any byte is a PlanError."""

import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import CapacityError, PlanError
from quire.ops.native.library import library
from quire.ops.spec import TensorSpec
from quire.plan.engine_directory import is_engine_directory
from quire.plan.folding import constant_nodes
from quire.plan.memory import (
    MemoryNeeds,
    StepLimits,
    bytes_read_per_token,
    flops_per_token,
    memory_needs,
    plan_memory,
    weight_bytes,
)
from quire.plan.plan import Plan
from quire.plan.storage.tensor_file import TensorFile, write_tensor_file
from tests.support.dummy_models import GPT2, LLAMA, write_model


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return open_plan(write_model(tmp_path_factory.mktemp("model"), LLAMA), BuildConfig(load_format="dummy"))


def test_saved_is_loaded(plan, tmp_path):
    plan.save(tmp_path)
    assert is_engine_directory(tmp_path) and not is_engine_directory(plan.directory)
    loaded = Plan.load(tmp_path)
    assert str(loaded.network) == str(plan.network)
    assert loaded.spec == plan.spec and loaded.build == plan.build
    assert all(torch.equal(loaded.weights.read(name), plan.weights.read(name)) for name in plan.network.weights)


def test_saving_again_replaces_an_engine_but_nothing_else(plan, tmp_path):
    plan.save(tmp_path / "engine")
    Plan.load(tmp_path / "engine").save(tmp_path / "copy")
    plan.save(tmp_path / "engine")
    names = ("graph.json", "weights.safetensors", "config.json")
    assert all((tmp_path / "engine" / n).read_bytes() == (tmp_path / "copy" / n).read_bytes() for n in names)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(PlanError, match="expected a new, empty or engine directory"):
        plan.save(tmp_path / "other")


def test_weights_of_another_model_are_refused(plan, tmp_path):
    plan.save(tmp_path / "a")
    other = open_plan(write_model(tmp_path / "m", {**LLAMA, "intermediate_size": 96}), BuildConfig(load_format="dummy"))
    other.save(tmp_path / "b")
    (tmp_path / "a" / "weights.safetensors").write_bytes((tmp_path / "b" / "weights.safetensors").read_bytes())
    with pytest.raises(PlanError, match=r"tensor 'model\.layers\.0\.mlp"):
        Plan.load(tmp_path / "a")


def test_tensor_file_aligns_and_orders(tmp_path):
    specs = {"odd": TensorSpec((3,), torch.float32), "even": TensorSpec((32, 2), torch.bfloat16)}
    tensors = {"odd": torch.tensor([1.0, 2.0, 3.0]), "even": torch.randn(32, 2).bfloat16()}
    write_tensor_file(tmp_path / "t", specs, ((n, tensors[n]) for n in ("even", "odd")))
    file = TensorFile(tmp_path / "t")
    assert list(file.names()) == ["even", "odd"]
    assert all(torch.equal(file.read(n), t) and file.read(n).data_ptr() % 64 == 0 for n, t in tensors.items())
    assert int.from_bytes((tmp_path / "t").read_bytes()[:8], "little") % 64 == 56
    with pytest.raises(PlanError, match="expected a tensor 'none'"):
        file.read("none")


def test_files_can_be_read_by_the_safetensors_library(plan, tmp_path):
    from safetensors.torch import load_file

    plan.save(tmp_path)
    found = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(found[name], plan.weights.read(name)) for name in plan.network.weights)


def blocks(out_features, in_features):
    """Bytes of a float32 matrix in blocks of 16 columns and 32 rows, or oneDNN's of 64 rows without kernels."""
    rows = 64 if library() is None else 32
    return 4 * (-(-out_features // rows) * rows) * (-(-in_features // 16) * 16)


def test_weight_bytes_and_flops_by_hand(plan):
    hidden, inner, vocab, q, kv = 48, 80, 211, 64, 32
    shapes = [(q + 2 * kv, hidden), (hidden, q), (2 * inner, hidden), (hidden, inner)] * 2 + [(vocab, hidden)]
    matrices = sum(rows * columns for rows, columns in shapes)
    norms, table, embedding = 5 * hidden, 512 * 16, vocab * hidden
    assert flops_per_token(plan.network) == 2 * matrices
    assert bytes_read_per_token(plan.network) == 4 * matrices
    assert weight_bytes(plan.network) == sum(blocks(*shape) for shape in shapes) + 4 * (norms + table + embedding)


def test_transposed_weights_count_once(tmp_path):
    plan = open_plan(write_model(tmp_path, GPT2), BuildConfig(load_format="dummy"))
    names = {node.name for node in constant_nodes(plan.network) if node.op == "call_function"}
    assert names, "GPT-2 stores its matrices transposed"
    shapes = [(108, 36), (36, 36), (144, 36), (36, 144)] * 2 + [(211, 36)]
    vectors = 2 * (108 + 36 + 144 + 36 + 4 * 36) + 2 * 36 + 512 * 36 + 211 * 36
    assert weight_bytes(plan.network) == sum(blocks(*shape) for shape in shapes) + 4 * vectors


def limits(**changes):
    values = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "max_num_logits": 4, "max_model_len": 128}
    return StepLimits(**{**values, "block_size": 16, **changes})


def test_needs_grow_with_tokens_sequences_and_logits(plan):
    def needs(**changes):
        return memory_needs(plan.network, limits(**changes))

    assert needs(max_num_batched_tokens=100).step < needs(max_num_batched_tokens=1000).step
    assert needs(max_model_len=128, max_num_seqs=64).step < needs(max_model_len=512, max_num_seqs=64).step
    assert needs().sampling < needs(max_num_logits=64).sampling


def test_memory_plan_divides_the_budget():
    needs = MemoryNeeds(weights=1000, workspace=300, sampling=400, overhead=50, largest="")
    options = {"kv_bytes_per_block": 32, "block_size": 16, "most_blocks": 1000}
    assert needs.step == 400 and needs.total == 1450
    fixed = plan_memory(needs, budget_bytes=1 << 30, **options)
    assert fixed.num_blocks == 1000 and fixed.num_tokens == 999 * 16 and fixed.num_sequences(17) == 499
    assert fixed.total_bytes == 1450 + 32000
    assert plan_memory(needs, budget_bytes=1450 + 7 * 32 + 31, **options).num_blocks == 7
    assert plan_memory(needs, budget_bytes=1 << 30, kv_bytes=100, **options).num_blocks == 3
    with pytest.raises(CapacityError, match="The largest term is weights"):
        plan_memory(needs, budget_bytes=1450 + 63, **options)
    with pytest.raises(CapacityError, match=r"KV cache is too small: expected at least 64 bytes .* got 63"):
        plan_memory(needs, budget_bytes=1 << 30, kv_bytes=63, **options)
    with pytest.raises(CapacityError, match="The largest term is KV cache"):
        plan_memory(needs, budget_bytes=3000, kv_bytes=3000, **options)
