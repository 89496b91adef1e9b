"""The tactics of NVIDIA GPUs, by op in order of preference: the first that is valid is the default."""

from __future__ import annotations

from quire.ops.tactic import Tactic
from quire.ops.triton import elementwise, norm

TACTICS: tuple[Tactic, ...] = (
    Tactic("rms_norm", "triton", norm.rms_norm),
    Tactic("add_rms_norm", "triton", norm.add_rms_norm),
    Tactic("rms_norm_quant", "triton", norm.rms_norm_quant, is_valid=elementwise.has_eight_bits),
    Tactic("add_rms_norm_quant", "triton", norm.add_rms_norm_quant, is_valid=elementwise.has_eight_bits),
    Tactic("layer_norm", "triton", norm.layer_norm),
    Tactic("silu", "triton", elementwise.silu),
    Tactic("gelu", "triton", elementwise.gelu),
    Tactic("silu_mul", "triton", elementwise.silu_mul),
    Tactic("silu_mul_quant", "triton", elementwise.silu_mul_quant, is_valid=elementwise.has_eight_bits),
    Tactic("quantize_rows", "triton", elementwise.quantize_rows, is_valid=elementwise.has_eight_bits),
)
