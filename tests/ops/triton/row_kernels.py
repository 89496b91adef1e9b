"""The kernels that are no matrix products, for `test_compile.py`: attention, rows, and what is around a step."""

from __future__ import annotations

from typing import Any

from tests.ops.triton.compiling import Compilation

_TRITON = "quire.ops.triton"
_HEADS = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8}


def _of(
    kernel: str,
    pointers: dict[str, str],
    numbers: str = "",
    missing: str = "",
    warps: int = 4,
    most_spilled: dict[int, int] | None = None,
    wants_wgmma: bool = False,
    capabilities: tuple[int, ...] = (90, 80),
    **constants: Any,
) -> Compilation:
    """Return a variant of a kernel.

    Args:
        kernel: Module in `ops.triton` and name.
        pointers: Types by names, several with spaces between; all aligned.
        numbers: Names of integers, with ":16" if they are divisible by it.
        missing: Names of arguments that are None.
        constants: Values of the rest.
    """
    signature = {name: f"*{dtype}:16" for dtype, names in pointers.items() for name in names.split()}
    for name, _, divisor in (number.partition(":") for number in numbers.split()):
        signature[name] = "i32:16" if divisor else "i32"
    for name in ("eps", "scale"):
        if signature.get(name) == "i32":
            signature[name] = "fp32"
    return Compilation(
        f"{_TRITON}.{kernel}", signature, {**dict.fromkeys(missing.split()), **constants},
        {"num_warps": warps, "enable_fp_fusion": False}, wants_wgmma, capabilities, most_spilled or {},
    )  # fmt: skip


def _attend(
    tile: tuple[int, int, int, int], head_dim: int, kv: str, most_spilled: dict[int, int],
    capabilities: tuple[int, ...] = (90, 80), is_float8: bool = False, is_one_loop: bool = False,
    is_new: bool = False,
):  # fmt: skip
    """Return attention over caches of a dtype, i16 of eight bits; `tile` is rows, positions, warps, stages; `is_new` if
    it rotates and writes new keys itself."""
    block_m, block_n, warps, stages = tile
    pointers = {"i32": "items count arrivals block_table", "fp32": "partials peaks_sums", "bf16": "out query"}
    if kv == "bf16":
        pointers["bf16"] += " kv_cache"
    else:
        pointers["fp32"] += " kv_scales"
        pointers[kv] = "kv_cache"
    missing = "soft_cap" if "kv_scales" in pointers["fp32"] else "soft_cap kv_scales"
    if is_new:
        pointers["bf16"] += " key value"
        pointers["fp32"] += " angles"
        pointers["i32"] += " positions slot_mapping"
    else:
        missing += " key value positions angles slot_mapping"
    return _of(
        "attention:_attend_kernel", pointers,
        "scale window num_programs stride_of_key:16 stride_of_value:16 stride_token:16 "
        "stride_head:16 stride_value:16 stride_block:16 stride_kv_head:16 "
        "stride_table",
        missing, warps, most_spilled, block_m >= 64,
        capabilities, HAS_WINDOW=False, **_HEADS, HEAD_DIM=head_dim, PADDED=head_dim, BLOCK_SIZE=16, MEMBERS=4,
        HEAD_TILES=1, BLOCK_M=block_m, BLOCK_N=block_n, SPLIT=512, NUM_STAGES=stages,
        IS_ONE_LOOP=is_one_loop, IS_FLOAT8=is_float8,
    )  # fmt: skip


def _rope_append_kv(kv: str):
    pointers = {"bf16": "query key value out", "fp32": "table", "i32": "positions slot_mapping"}
    pointers[kv] = f"{pointers.get(kv, '')} kv_cache"
    pointers["fp32"] += "" if kv == "bf16" else " kv_scales"
    return _of(
        "rope:_rope_append_kv_kernel", pointers,
        "num_tokens num_query_programs query_stride:16 query_head_stride:16 key_stride:16 key_head_stride:16 "
        "value_stride:16 value_head_stride:16 cache_value_stride:16 cache_block_stride:16 cache_head_stride:16",
        "kv_scales" if kv == "bf16" else "", capabilities=(90, 80) if kv == "bf16" else (90,), **_HEADS, HEAD_DIM=128,
        HALF=64, BLOCK_SIZE=16, ROWS=32,
    )  # fmt: skip


def _rms_norm(width: int, block: int, warps: int, kept: str | None):
    pointers = {"bf16": "x residual weight total" + ("" if kept else " out"), **({kept: "out"} if kept else {})}
    return _of(
        "norm:_rms_norm_kernel", {**pointers, **({"fp32": "scales"} if kept else {})},
        "eps num_rows x_inner x_outer_stride:16 x_inner_stride:16 residual_inner residual_outer_stride:16 "
        "residual_inner_stride:16",
        "" if kept else "scales", warps, capabilities=(90, 80) if kept else (90,), LARGEST=127.0, WIDTH=width,
        BLOCK=block, ROWS=1,
    )  # fmt: skip


def _all_reduce(width: int, block: int, warps: int, is_normed: bool):
    return _of(
        "peers:_all_reduce_kernel",
        {"bf16": "x total" + (" residual weight out" if is_normed else " out"), "i64": "addresses", "i32": "turns"},
        "eps num_rows rank", "" if is_normed else "residual weight", warps, WORLD=8, WIDTH=width, BLOCK=block, ROWS=1,
    )  # fmt: skip


def _quantize(width: int, block: int, warps: int, kept: str, is_gated: bool):
    return _of(
        "elementwise:_quantize_kernel", {"bf16": "x", kept: "out", "fp32": "scales"},
        "num_rows inner outer_stride:16 inner_stride:16", "", warps, capabilities=(90, 80) if kept == "i8" else (90,),
        LARGEST=127.0, IS_GATED=is_gated, WIDTH=width, BLOCK=block, ROWS=1,
    )  # fmt: skip


_SAMPLING = "step.sampling_kernels"
_VOCABULARY = {"VOCAB_SIZE": 128256, "BLOCK": 4096, "warps": 8}
_BLOCKS = {**_VOCABULARY, "BLOCKS": 32, "PADDED": 32}
_STATE = {"bf16": "logits", "i32": "slots", "i64": "parameters best sums weights thresholds"}
_DECODING, _PROMPTS = (16, 128, 4, 4), (128, 128, 8, 2)

ROW_COMPILATIONS = (
    _all_reduce(8192, 8192, 16, True),
    _all_reduce(4096, 4096, 8, False),
    _of("peers:_all_gather_kernel", {"bf16": "x out", "i64": "addresses", "i32": "turns"},
        "rank num_chunks size:16 width:16", WORLD=8, CHUNK=4096, BLOCK=2048),
    # Prompts keep two sums of 128 x 128 in registers, half of what there are. Allowed is what Triton 3.6 or 3.9 needs.
    _attend(_DECODING, 128, "bf16", {80: 96}),
    _attend(_DECODING, 64, "bf16", {90: 24}, (90,)),
    _attend(_DECODING, 128, "bf16", {}, (90,), is_one_loop=True, is_new=True),
    _attend(_DECODING, 64, "bf16", {}, (90,), is_one_loop=True, is_new=True),
    _attend(_DECODING, 128, "bf16", {}, (90,), is_new=True),
    _attend((16, 64, 2, 5), 128, "i16", {}, (90, 80), is_float8=True),
    _attend((64, 64, 4, 1), 128, "i16", {}, (90,)),
    _attend((64, 32, 8, 2), 256, "i16", {90: 320}, (90,), is_float8=True),
    _attend(_PROMPTS, 128, "bf16", {90: 120, 80: 424}),
    _attend(_PROMPTS, 64, "bf16", {}, (90,)),
    _of("attention_tiles:_cut_kernel", {"i32": "seq_lens query_start_loc items count_of_items arrivals"},
        "num_seqs num_tokens window max_slots", HAS_WINDOW=False, OF=1, TILE=4, SPLIT=512, HEAD_TILES=8, BLOCK=256,
        STEP=64, capabilities=(90,)),
    _rope_append_kv("bf16"),
    _rope_append_kv("i8"),
    _rms_norm(4096, 4096, 8, None),
    _rms_norm(4096, 4096, 8, "i8"),
    _of("norm:_layer_norm_kernel", {"bf16": "x weight bias out"},
        "eps num_rows x_inner x_outer_stride:16 x_inner_stride:16", "", 8, WIDTH=4096, BLOCK=4096, ROWS=1,
        capabilities=(90,)),
    _quantize(4096, 4096, 8, "i8", is_gated=False),
    _quantize(4096, 4096, 8, "fp8e4nv", is_gated=False),
    _of("elementwise:_silu_mul_kernel", {"bf16": "x out"}, "inner outer_stride:16 inner_stride:16", WIDTH=14336,
        BLOCK=1024, capabilities=(90,)),
    _of("elementwise:_activation_kernel", {"bf16": "x out"}, "num_values:16", KIND="gelu_erf", BLOCK=1024,
        capabilities=(90,)),
    _of(f"{_SAMPLING}:summarize_kernel",
        {"bf16": "logits", "fp32": "edited", "i32": "slots", "i16": "counts",
         "i64": "parameters raw_best raw_sums best sums"},
        "row_stride:16", IS_RANDOM=True, HAS_LOGPROBS=True, capabilities=(90,), **_VOCABULARY),
    _of(f"{_SAMPLING}:weigh_kernel", {**_STATE, "i32": "slots bins"}, "row_stride:16", "edited", IS_FILTERED=True,
        IS_FINAL=False, capabilities=(90,), **_BLOCKS),
    _of(f"{_SAMPLING}:gather_kernel", {**_STATE, "i32": "slots bins", "fp32": "gathered"}, "row_stride:16", "edited",
        **_BLOCKS),
    _of(f"{_SAMPLING}:threshold_kernel",
        {"i32": "slots bins", "i64": "parameters weights thresholds", "fp32": "gathered"}, most_spilled={80: 16},
        **_BLOCKS),
    _of(f"{_SAMPLING}:choose_kernel",
        {**_STATE, "i64": f"{_STATE['i64']} raw_best", "i32": "slots ids statuses"}, "row_stride:16", "edited counts",
        IS_RANDOM=True, capabilities=(90,), **_BLOCKS),
    _of(f"{_SAMPLING}:rank_kernel",
        {"bf16": "logits", "i32": "ids num_above", "i64": "raw_best raw_sums tops"}, "row_stride:16", NUM=20,
        capabilities=(90,), **_BLOCKS),
    _of("step.batch:_lay_out_kernel",
        {"i32": "rows query_start_loc tokens last_tokens tables input_ids positions slot_mapping seq_lens block_table"},
        "num_table_columns", BLOCK_SIZE=16, CHUNK=512, capabilities=(90,)),
)  # fmt: skip
"""Add a kernel here with its variants that differ in registers or shared memory."""
