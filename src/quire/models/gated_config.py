"""Config fields that Llama and its kin share: sizes, rotary positions (v4 and v5 names), sliding windows."""

from __future__ import annotations

import math

from quire.core.model_spec import ModelSpec, RopeSpec
from quire.models import config_reader as bounds
from quire.models.config_reader import ConfigReader
from quire.models.decoder import ACTIVATION_NAMES
from quire.ops.rope import ROPE_KINDS

_MAX_FACTOR = 1e6
_MAX_THETA = 1e15
_HARMLESS_ROPE = frozenset({"finetuned"})
_LAYER_TYPES = ("full_attention", "sliding_attention")


def read_gated_spec(
    reader: ConfigReader,
    family: str,
    architecture: str,
    dtype: str,
    *,
    default_head_dim: int | None = None,
    default_kv_heads: int | None = None,
) -> ModelSpec:
    """Read what all families with a gated decoder have in common.

    Args:
        reader: The config.
        family: Name of the family's file.
        architecture: Name in the config.
        dtype: Resolved dtype.
        default_head_dim: Where the config has none; None means hidden_size / num_heads.
        default_kv_heads: Where the config has none; None means as many as query heads.

    Raises:
        ConfigError: A field is missing, out of bounds, or contradicts another.
    """
    hidden = reader.integer("hidden_size", bounds.MAX_WIDTH)
    heads = reader.integer("num_attention_heads", bounds.MAX_HEADS)
    kv_heads = reader.integer("num_key_value_heads", heads, default=default_kv_heads or heads)
    if heads % kv_heads:
        reader.fail("num_key_value_heads", f"a divisor of num_attention_heads={heads}")
    head_dim = reader.optional_integer("head_dim", bounds.MAX_HEAD_DIM) or default_head_dim
    if head_dim is None and hidden % heads:
        reader.fail("hidden_size", f"a multiple of num_attention_heads={heads}, or an explicit head_dim")
    head_dim = head_dim or hidden // heads
    if head_dim % 2:
        reader.fail("head_dim", f"an even width for rotary positions (hidden_size / num_attention_heads = {head_dim})")
    positions = reader.integer("max_position_embeddings", bounds.MAX_POSITIONS)
    rope = read_rope(reader, positions)
    return ModelSpec(
        family=family,
        architecture=architecture,
        vocab_size=reader.integer("vocab_size", bounds.MAX_VOCAB),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", bounds.MAX_WIDTH),
        num_layers=reader.integer("num_hidden_layers", bounds.MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_stretched(rope, positions),
        norm_eps=reader.number("rms_norm_eps", 1e-20, 1.0, 1e-6),
        hidden_act=reader.choice("hidden_act", ACTIVATION_NAMES, "silu"),
        dtype=dtype,
        rope=rope,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        embedding_size=hidden,
        bos_token_id=reader.optional_integer("bos_token_id", bounds.MAX_TOKEN_ID, low=0),
        eos_token_ids=reader.token_ids("eos_token_id"),
    )


def _stretched(rope: RopeSpec, positions: int) -> int:
    """Return the context length after scaling; as in vLLM, `max_position_embeddings` is the one before it.

    Under llama3 the config already states the stretched length; under yarn it may state either.
    """
    if rope.kind == "linear":
        return min(round(positions * rope.factor), bounds.MAX_POSITIONS)
    if rope.kind == "yarn":
        return min(max(positions, round(rope.original_max_position * rope.factor)), bounds.MAX_POSITIONS)
    return positions


def read_rope(reader: ConfigReader, positions: int) -> RopeSpec:
    """Read `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

    Args:
        reader: The config.
        positions: Its `max_position_embeddings`.

    Raises:
        ConfigError: An unsupported kind, a missing or contradictory number, an unknown key.
    """
    theta = reader.number("rope_theta", 1.1, _MAX_THETA, 10000.0)
    reader.expect("partial_rotary_factor", 1)
    old, new = reader.section("rope_scaling", _HARMLESS_ROPE), reader.section("rope_parameters", _HARMLESS_ROPE)
    if old and new:
        reader.fail("rope_scaling", "only one of rope_scaling and rope_parameters")
    # As in transformers, a length at the top of the config goes before the one inside the section.
    original = reader.optional_integer("original_max_position_embeddings", bounds.MAX_POSITIONS)
    section = old or new
    if section is None:
        return RopeSpec(theta=theta)
    theta = section.number("rope_theta", 1.1, _MAX_THETA, theta)
    section.expect("partial_rotary_factor", 1)
    rope = _read_scaling(section, theta, original, positions)
    section.finish()
    return rope


def _read_scaling(section: ConfigReader, theta: float, original: int | None, positions: int) -> RopeSpec:
    kinds = {kind: kind for kind in ROPE_KINDS}
    kind = section.choice("rope_type", kinds, section.choice("type", kinds, "default"))
    section.expect("type", kind)
    if kind == "default":
        section.expect("factor", 1)
        return RopeSpec(theta=theta)
    if kind == "linear":
        return RopeSpec(theta, kind, section.number("factor", 1.0, _MAX_FACTOR))
    inside = section.integer("original_max_position_embeddings", bounds.MAX_POSITIONS, default=positions)
    original = original or inside
    return (
        _read_llama3(section, theta, original) if kind == "llama3" else _read_yarn(section, theta, original, positions)
    )


def _read_llama3(section: ConfigReader, theta: float, original: int) -> RopeSpec:
    low = section.number("low_freq_factor", 1e-6, _MAX_FACTOR)
    high = section.number("high_freq_factor", 1e-6, _MAX_FACTOR)
    if high <= low:
        section.fail("high_freq_factor", f"more than low_freq_factor={low:g}")
    return RopeSpec(theta, "llama3", section.number("factor", 1.0, _MAX_FACTOR), original, low, high)


def _read_yarn(section: ConfigReader, theta: float, original: int, positions: int) -> RopeSpec:
    section.expect("truncate", True)
    factor = section.number("factor", 1.0, _MAX_FACTOR, max(positions / original, 1.0))
    attention = section.optional_number("attention_factor", 0.0, _MAX_FACTOR)
    numerator = section.optional_number("mscale", 0.0, _MAX_FACTOR)
    denominator = section.optional_number("mscale_all_dim", 0.0, _MAX_FACTOR)
    if attention is None and numerator and denominator:
        attention = _yarn_scale(factor, numerator) / _yarn_scale(factor, denominator)
    fast = section.number("beta_fast", 1e-6, _MAX_FACTOR, 32.0)
    slow = section.number("beta_slow", 1e-6, _MAX_FACTOR, 1.0)
    if fast <= slow:
        section.fail("beta_fast", f"more than beta_slow={slow:g}")
    return RopeSpec(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=_yarn_scale(factor, 1.0) if attention is None else attention,
    )


def _yarn_scale(factor: float, weight: float) -> float:
    """Return 0.1 * weight * ln(factor) + 1 (Peng et al. 2023, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0


def read_windows(reader: ConfigReader, num_layers: int, window: int | None, first: int) -> tuple[int | None, ...]:
    """Return the window of every layer, () if none has one.

    Args:
        reader: The config; `layer_types` decides where it has one.
        num_layers: Layers.
        window: Latest tokens that a query of a sliding layer sees; None switches sliding off.
        first: Without `layer_types`, index of the first sliding layer.

    Raises:
        ConfigError: `layer_types` has another length, an unknown type, or slides without a window.
    """
    types = reader.strings("layer_types")
    if types is None:
        slides = [window is not None and layer >= first for layer in range(num_layers)]
    else:
        if len(types) != num_layers or any(name not in _LAYER_TYPES for name in types):
            reader.fail("layer_types", f"num_hidden_layers={num_layers} entries of {' or '.join(_LAYER_TYPES)}")
        slides = [name == "sliding_attention" for name in types]
        if any(slides) and window is None:
            reader.fail("layer_types", "full_attention only, since no sliding window is switched on")
    return tuple(window if is_sliding else None for is_sliding in slides) if any(slides) else ()
