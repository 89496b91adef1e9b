"""An estimated quantized plan needs what a real one does."""

from dataclasses import replace

import pytest

from quire.builder.estimate import estimate_quantized
from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import ConfigError
from quire.engine.capacity import needs_of
from tests.support.dummy_models import LLAMA, OPT, write_model

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
PLAIN = BuildConfig(load_format="dummy", num_calibration_samples=1, calibration_length=4, max_kl=1e9, group_size=64)


@pytest.mark.parametrize("family, sizes", [(LLAMA, SIZES), (OPT, {"hidden_size": 192, "word_embed_proj_dim": 192})])
@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "w8a8"},
        {"quantization": "w4a16"},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "int8"},
        {"quantization": "w8a16", "kv_cache_dtype": "fp8"},
    ],
    ids=str,
)
def test_estimate_is_what_the_build_needs(changes, family, sizes, tmp_path):
    model = write_model(tmp_path, {**family, **sizes})
    plan, config = open_plan(model, PLAIN), replace(PLAIN, **changes)
    estimate, built = estimate_quantized(plan, config), open_plan(model, config)
    expected, found = (needs_of(EngineConfig(max_num_batched_tokens=64), one, 256) for one in (built, estimate))
    assert estimate.kv_bytes_per_token == built.kv_bytes_per_token
    assert found.step == expected.step
    assert abs(expected.weights - found.weights) <= 0.02 * expected.weights, "but for what is folded or smooths"
    assert str(plan.network) == str(open_plan(model, PLAIN).network), "the plan itself is left alone"


def test_nothing_to_quantize_and_wrong_names(tmp_path):
    model = write_model(tmp_path, {**LLAMA, **SIZES})
    plan, config = open_plan(model, PLAIN), replace(PLAIN, quantization="w8a8", kv_cache_dtype="int8")
    assert estimate_quantized(plan, PLAIN) is None
    assert estimate_quantized(estimate_quantized(plan, config), replace(config, exclude=("lm_head",))) is None
    with pytest.raises(ConfigError, match="exclude"):
        estimate_quantized(plan, replace(config, exclude=("lm_heat",)))
