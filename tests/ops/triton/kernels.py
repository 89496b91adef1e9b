"""The matrix products that `test_compile.py` compiles: of each kernel the variants that matter, as launches do."""

from __future__ import annotations

from typing import Any

from tests.ops.triton.compiling import Compilation

_LINEAR = "quire.ops.triton.linear"
_MOE = "quire.ops.triton.moe"
_QUANTIZED = "quire.ops.triton.quantized_linear"
_SCALED = {"scales": "*fp32:16", "x_scales": "*fp32:16", "bias": "*bf16:16"}
_PLAIN = {"scales": None, "x_scales": None, "bias": None}
_SIZES = {"num_rows": "i32", "out_features": "i32:16", "in_features": "i32:16"}


def _options(warps: int, stages: int) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}


def _streamed(dtype: str, rows: int, features: int, channels: int, warps: int, stages: int, out: str = "bf16"):
    blocks = {"x": f"{dtype}[{rows},{channels}]", "weight": f"{dtype}[{features},{channels}]"}
    descriptors = {**blocks, "out": f"{out}[{rows},64]"}
    is_scaled = dtype not in ("bf16", "fp16")
    return Compilation(
        f"{_LINEAR}:streamed_kernel",
        {**{name: f"tensordesc<{block}>" for name, block in descriptors.items()}, **_SIZES,
         **(_SCALED if is_scaled else {})},
        {"ROWS": rows, "FEATURES": features, "CHANNELS": channels, **({} if is_scaled else _PLAIN)},
        _options(warps, stages), wants_wgmma=True, capabilities=(90,),
    )  # fmt: skip


def _narrow(dtype: str, rows: int, channels: int, stages: int):
    is_scaled = dtype != "bf16"
    return Compilation(
        f"{_LINEAR}:narrow_kernel",
        {"x": f"tensordesc<{dtype}[{rows},{channels}]>", "weight": f"tensordesc<{dtype}[64,{channels}]>",
         "lines": f"*{dtype}:16", "out": "*bf16:16", **_SIZES, "weight_stride": "i32:16",
         **(_SCALED if is_scaled else {})},
        {"ROWS": rows, "FEATURES": 64, "CHANNELS": channels, "AHEAD": 256, **({} if is_scaled else _PLAIN)},
        _options(4, stages), wants_wgmma=True, capabilities=(90,),
    )  # fmt: skip


def _gathered(
    dtypes: tuple[str, str], operand: str, tile: tuple[int, ...], is_whole: bool = True,
    capabilities: tuple[int, ...] = (90, 80),
):  # fmt: skip
    """Return a variant of the kernel for all; `tile` is rows, features, channels, warps, stages."""
    x, weight = dtypes
    out, is_scaled = ("fp32" if x == "fp32" else "bf16"), weight not in ("bf16", "fp16", "fp32")
    pointers = {"x": f"*{x}:16", "weight": f"*{weight}:16", "out": f"*{out}:16", **(_SCALED if is_scaled else {})}
    sizes = {**_SIZES, "x_stride": "i32:16", "weight_stride": "i32:16"}
    if not is_whole:
        sizes = {name: "i32" for name in sizes}
    constants = {"ROWS": tile[0], "FEATURES": tile[1], "CHANNELS": tile[2], "IS_WHOLE": is_whole}
    constants["AHEAD"] = 256 if tile[0] <= 64 else 0
    return Compilation(
        f"{_LINEAR}:gathered_kernel", {**pointers, **sizes},
        {**constants, "OPERAND": f"tl.{operand}", **({} if is_scaled else _PLAIN)},
        _options(*tile[3:]), wants_wgmma=x != "fp32", capabilities=capabilities,
    )  # fmt: skip


def _packed(bits: int, rows: int, features: int, warps: int, stages: int, is_float8: bool = False):
    sizes = {**_SIZES, "x_stride": "i32:16", "weight_stride": "i32:16"}
    given, part = ({"groups": "*i32:16"}, 32) if bits == 4 else ({"scales": "*fp32:16"}, 64)
    missing = dict.fromkeys({"groups", "scales", "bias"} - given.keys())
    return Compilation(
        f"{_QUANTIZED}:packed_kernel",
        {"x": "*bf16:16", "weight": "*i16:16", "out": "*bf16:16", **given, **sizes},
        {**missing, "ROWS": rows, "FEATURES": features, "PART": part, "PARTS": 16 // bits,
         "GROUP": 128 if bits == 4 else 1, "IS_WHOLE": True, "IS_FLOAT8": is_float8},
        _options(warps, stages), wants_wgmma=features >= 64,
    )  # fmt: skip


def _expert(rows: int, is_pair: bool):
    pointers = dict.fromkeys(("x", "weight", "out"), "*bf16:16")
    indices = {"experts": "*i32:16", "firsts": "*i64:16", "ends": "*i64:16"}
    pair = {"second": "*bf16:16", "sources": "*i64:16"} if is_pair else {}
    sizes = dict.fromkeys(("out_features", "in_features", "x_stride"), "i32:16")
    return Compilation(
        f"{_MOE}:expert_kernel", {**pointers, **indices, **pair, **sizes},
        {**({} if is_pair else {"second": None, "sources": None}),
         "ROWS": rows, "FEATURES": 64, "CHANNELS": 64, "IS_WHOLE": True},
        _options(4, 3), wants_wgmma=True,
    )  # fmt: skip


_BF16, _FP8, _INT8 = ("bf16", "bf16"), ("fp8e4nv", "fp8e4nv"), ("i8", "i8")

COMPILATIONS = (
    _streamed("bf16", 128, 256, 64, 8, 4),
    _streamed("bf16", 128, 128, 64, 4, 5),
    _streamed("bf16", 64, 128, 64, 4, 6),
    _streamed("bf16", 64, 64, 64, 4, 6),
    _streamed("fp8e4nv", 128, 256, 128, 8, 4),
    _streamed("fp8e4nv", 64, 64, 128, 4, 6),
    _streamed("i8", 128, 256, 128, 8, 4),
    _streamed("i8", 128, 256, 128, 8, 4, out="fp32"),
    _narrow("bf16", 16, 256, 5),
    _narrow("bf16", 64, 256, 3),
    _narrow("fp8e4nv", 16, 512, 5),
    _narrow("i8", 16, 512, 5),
    _gathered(_BF16, "bfloat16", (16, 64, 128, 4, 10), capabilities=(90,)),
    _gathered(_BF16, "bfloat16", (16, 64, 128, 4, 6), capabilities=(80,)),
    _gathered(_BF16, "bfloat16", (64, 128, 128, 4, 3)),
    _gathered(_BF16, "bfloat16", (128, 128, 64, 8, 3)),
    _gathered(_BF16, "bfloat16", (64, 64, 32, 4, 6), is_whole=False),
    _gathered(_FP8, "float8e4nv", (64, 64, 64, 4, 6), is_whole=False, capabilities=(90,)),
    _gathered(_FP8, "float8e4nv", (16, 64, 256, 4, 6), capabilities=(90,)),
    _gathered(_INT8, "int8", (16, 64, 256, 4, 6)),
    _gathered(_INT8, "int8", (128, 128, 128, 8, 3), capabilities=(80,)),
    _gathered(("u8", "u8"), "float16", (128, 128, 128, 8, 3), capabilities=(80,)),
    _gathered(("fp32", "fp32"), "float32", (16, 64, 32, 4, 2)),
    _packed(8, 16, 32, 4, 6),
    _packed(8, 64, 32, 4, 6),
    _packed(8, 16, 32, 4, 6, is_float8=True),
    _packed(4, 16, 32, 4, 6),
    _packed(4, 16, 64, 4, 3),
    _packed(4, 128, 128, 8, 3),
    _expert(16, is_pair=True),
    _expert(128, is_pair=True),
    _expert(128, is_pair=False),
)
"""Add a kernel here with its variants that differ in registers or shared memory."""
