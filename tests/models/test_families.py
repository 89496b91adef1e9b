"""What every family's network has in common, and that each number of a spec counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.core.errors import ConfigError
from quire.core.model_spec import ModelSpec
from quire.graph.legality import DEFINED, OPTIMIZED, check_network
from quire.graph.text import network_from_text, network_to_text
from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.weights.open import open_weights
from tests.support.hf_models import CASE_NAMES, case, save_checkpoint
from tests.support.paged_run import PagedRun

STEP_INPUTS = ["input_ids", "positions", "slot_mapping", "block_table", "seq_lens", "query_start_loc"]


def _spec(name: str, dtype: str = "float32") -> ModelSpec:
    found = case(name)
    architecture = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM"}.get(
        found.family, f"{found.family.capitalize()}ForCausalLM"
    )
    return read_spec(found.config.to_dict() | {"architectures": [architecture]}, dtype)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_network_is_legal_complete_and_survives_text(name: str) -> None:
    spec = _spec(name, "bfloat16")
    network = define_network(spec)
    check_network(network, DEFINED)
    check_network(network, OPTIMIZED)
    assert list(network.inputs) == STEP_INPUTS + [f"kv_cache.{i}" for i in range(spec.num_layers)]
    assert list(network.outputs) == ["logits"]
    assert all(weight.dtype == torch.bfloat16 for weight in network.weights.values())
    assert str(network_from_text(network_to_text(network), "text")) == str(network)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"norm_eps": 0.02}),
        ("llama-llama3", {"rope": {"factor": 3.0}}),
        ("llama-llama3", {"rope": {"original_max_position": 25}}),
        ("llama-llama3", {"rope": {"low_freq_factor": 1.5}}),
        ("llama-llama3", {"rope": {"high_freq_factor": 4.5}}),
        ("llama-linear", {"rope": {"factor": 2.4}}),
        ("llama-linear", {"rope": {"theta": 690.0}}),
        ("llama-yarn", {"rope": {"attention_factor": 1.1}}),
        ("llama-yarn-mscale", {"rope": {"beta_fast": 0.25}}),
        ("llama-yarn-mscale", {"rope": {"beta_slow": 0.1}}),
        ("qwen2-window", {"sliding_windows": (None, 5, 6)}),
        ("qwen2-window", {"sliding_windows": (5, 5, 5)}),
        ("mistral-window", {"sliding_windows": (4, 4)}),
        ("gpt2", {"attention_scale": 1.0}),
        ("gpt2", {"scale_attn_by_layer": True}),
        ("gpt2", {"hidden_act": "gelu"}),
        ("llama", {"hidden_act": "gelu_tanh"}),
    ],
)
def test_every_number_shows_in_the_logits(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(name, tmp_path)
    spec = read_spec(json.loads((tmp_path / "config.json").read_text()))
    rope = change.get("rope")
    changed = replace(spec, **({"rope": replace(spec.rope, **rope)} if rope else change))
    assert float((_logits(spec, tmp_path) - _logits(changed, tmp_path)).abs().max()) > 5e-4  # 5x what equality allows


def _logits(spec: ModelSpec, directory: Path) -> torch.Tensor:
    network = define_network(spec)
    source = open_weights(directory, network.weights, checkpoint_names(spec).canonical)
    weights = {weight: source.read(weight) for weight in source.names()}
    return PagedRun(network, spec, weights, 1, 20).step([list(range(20))])[0]


@pytest.mark.parametrize(
    ("name", "stored", "canonical"),
    [
        ("gpt2", "h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
        ("gpt2", "transformer.h.0.attn.c_attn.bias", "transformer.h.0.attn.c_attn.bias"),
        ("gpt2", "wte.weight", "transformer.wte.weight"),
        ("gpt2", "h.11.attn.bias", None),
        ("gpt2", "transformer.h.11.attn.masked_bias", None),
        ("gpt2", "lm_head.weight", None),
        ("gpt2-options", "lm_head.weight", "lm_head.weight"),
        ("opt", "decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1.weight"),
        ("opt", "model.decoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1.weight"),
        ("llama", "layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("llama", "norm.weight", "model.norm.weight"),
        ("llama", "model.layers.3.self_attn.rotary_emb.inv_freq", None),
        ("llama", "model.rotary_emb.inv_freq", None),
        ("llama", "lm_head.weight", "lm_head.weight"),
        ("qwen2", "lm_head.weight", None),
        ("qwen2", "visual.patch.weight", "visual.patch.weight"),
    ],
)
def test_checkpoint_names(name: str, stored: str, canonical: str | None) -> None:
    assert checkpoint_names(_spec(name)).canonical(stored) == canonical


def test_shards_written_by_transformers(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / "one")
    save_checkpoint("llama", tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    spec = read_spec(json.loads((tmp_path / "one" / "config.json").read_text()))
    assert torch.equal(_logits(spec, tmp_path / "one"), _logits(spec, tmp_path / "many"))


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2"])
def test_legacy_checkpoint_of_the_model_without_its_head(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the hub: names without the first prefix, causal masks and frequencies as buffers, a copy of the head."""
    monkeypatch.setenv("QUIRE_CACHE_DIR", str(tmp_path / "cache"))
    model = save_checkpoint(name, tmp_path / "new")
    state = dict(model.base_model.state_dict())
    extra = {"gpt2": ["h.0.attn.bias", "h.2.attn.masked_bias"], "qwen2": ["layers.0.self_attn.rotary_emb.inv_freq"]}
    state |= {key: torch.ones(1, 1, 5, 5, dtype=torch.uint8) for key in extra.get(name, [])}
    state["lm_head.weight"] = next(value for key, value in state.items() if "wte" in key or "embed_tokens" in key)
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    spec = read_spec(json.loads((tmp_path / "new" / "config.json").read_text()))
    assert torch.equal(_logits(spec, tmp_path / "old"), _logits(spec, tmp_path / "new"))


def test_unknown_family_of_a_newer_plan() -> None:
    with pytest.raises(ConfigError, match=r"model family.*'llamma'.*Did you mean 'llama'"):
        define_network(replace(_spec("llama"), family="llamma"))
