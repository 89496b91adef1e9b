"""What tactics say they hold, against what is allocated while they run: for the memory plan."""

import pytest
import torch

from quire.ops.cpu import linear as cpu_linear
from quire.ops.cpu.table import TACTICS
from quire.ops.quantize import quantize_rows, quantize_weight, quantize_weight_int4
from quire.ops.registry import OPS
from quire.ops.spec import num_bytes, spec_of
from tests.support.memory_trace import MemoryTrace

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (300, 512, 1100)
WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 192, 320, 6, 2, 32
TOLERANCE = 0.03
# What kernels of float16 need on the way differs from shape to shape; experts' rows are gathered in between.
LOOSE = {("linear", torch.float16): 0.2, ("linear_w4a16", torch.float16): 0.2, ("moe", torch.float16): 0.2}


def rows(*shape, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def arguments(op, count, dtype):
    """Arguments of an op by name, for `count` rows or tokens."""
    x, weight = rows(count, WIDTH, dtype=dtype), rows(INNER, WIDTH, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    norm = {"x": x, "weight": rows(WIDTH, dtype=dtype), "eps": 1e-5}
    (q, q_scales), (w, scales) = quantize_rows(x), quantize_weight(weight)
    int4 = dict(zip(("weight", "scales", "zero_points"), quantize_weight_int4(weight, 64), strict=True))
    heads = {
        "query": rows(count, HEADS, HEAD_DIM, dtype=dtype),
        "key": rows(count, KV_HEADS, HEAD_DIM, dtype=dtype),
        "value": rows(count, KV_HEADS, HEAD_DIM, dtype=dtype),
        "positions": torch.arange(count, dtype=torch.int32),
        "table": rows(2000, HEAD_DIM, dtype=torch.float32),
        "kv_cache": torch.zeros(2, 80, KV_HEADS, 16, HEAD_DIM, dtype=torch.int8),
        "slot_mapping": torch.arange(16, 16 + count, dtype=torch.int32),
        "kv_scales": torch.ones(2, KV_HEADS),
    }
    return {
        "linear": {"x": x, "weight": weight, "bias": rows(INNER, dtype=dtype)},
        "silu": {"x": x},
        "gelu": {"x": x, "approximate": "tanh"},
        "silu_mul": {"x": x},
        "softmax": {"x": x, "dim": -1},
        "rope": {"x": heads["query"], "positions": heads["positions"], "table": heads["table"][:, :16].contiguous()},
        "append_kv": {name: heads[name] for name in ("key", "value", "kv_cache", "slot_mapping", "kv_scales")},
        "rope_append_kv": heads,
        "rms_norm": norm,
        "add_rms_norm": {"x": x, "residual": x.clone(), **norm},
        "quantize_rows": {"x": x, "dtype": "int8"},
        "rms_norm_quant": {**norm, "dtype": "float8_e4m3fn"},
        "add_rms_norm_quant": {"x": x, "residual": x.clone(), **norm, "dtype": "int8"},
        "silu_mul_quant": {"x": x, "dtype": "int8"},
        "linear_w8a8": {"x": q, "x_scales": q_scales, "weight": w, "scales": scales, "bias": None, "dtype": name},
        "linear_w8a16": {"x": x, "weight": w, "scales": scales, "bias": None},
        "linear_w4a16": {"x": x, **int4, "bias": None},
        "moe": {
            "x": x,
            "expert_ids": torch.tensor([[1, 0]] * count),
            "expert_weights": torch.ones(count, 2),
            "gate": rows(2, INNER, WIDTH, dtype=dtype),
            "up": rows(2, INNER, WIDTH, dtype=dtype),
            "down": rows(2, WIDTH, INNER, dtype=dtype),
        },
    }[op]


def specs(given):
    return {name: spec_of(value) if isinstance(value, torch.Tensor) else value for name, value in given.items()}


COUNTED = [one for one in TACTICS if one.op != "attention" and one.kernel is None]  # which have tests of their own


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tactic", COUNTED, ids=lambda one: f"{one.op}-{one.name}")
def test_a_tactic_holds_what_it_says(tactic, dtype, count):
    given = arguments(tactic.op, count, dtype)
    if not tactic.is_valid(**specs(given)):
        pytest.skip("not for these arguments")
    cpu_linear._PROOFS.clear()
    trace = MemoryTrace()
    trace.start()
    with torch.inference_mode(), trace.span("pack"):
        packed = tactic.pack(*(given[name] for name in tactic.pack_args)) if tactic.pack else None
    call = [given.get(name) for name in OPS[tactic.op].signature.parameters]
    if packed is not None:
        places = [list(OPS[tactic.op].signature.parameters).index(name) for name in tactic.pack_args]
        for place in places:
            call[place] = None
        call[places[0]] = packed
    with torch.inference_mode(), trace.span("prepare"):
        more = {"prepared": tactic.prepare(*call)} if tactic.prepare else {}
    with torch.inference_mode(), trace.span("run"):
        result = tactic.run(*call, **more)
    trace.stop()
    pack, prepare, run = trace.spans()
    results = [one for one in (result if isinstance(result, tuple) else (result,)) if one is not None]
    held = sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in results}.values())
    named = specs(given)
    probes = sum(proofs.probe.rows.nbytes for proofs in cpu_linear._PROOFS.values() if proofs.probe)
    made, making = prepare.left_tensors - pack.left_tensors, prepare.most_tensors - pack.left_tensors
    running = tactic.workspace_bytes(**named) if tactic.workspace_bytes else held
    planned = {
        "pack": (_packed(tactic, named), pack.left_tensors - probes),
        "prepare": (tactic.prepared_bytes(**named) if tactic.prepare else (0, 0), (made, making)),
        "run": (running, run.most_tensors - prepare.left_tensors),
        "result": (tactic.result_bytes(**named) if tactic.result_bytes else sum(map(num_bytes, results)), held),
    }
    for what, (said, found) in planned.items():
        for one, other in zip(said, found, strict=True) if isinstance(said, tuple) else ((said, found),):
            tolerance = LOOSE.get((tactic.op, dtype), 0.05 if tactic.op == "moe" else TOLERANCE)
            assert abs(one - other) <= tolerance * other + 8 * count, (what, said, found)


def _packed(tactic, named):
    """What packing is said to allocate; scales are kept as they are, nothing is new if tensors are."""
    if tactic.pack is None or tactic.packed_bytes is None:
        return 0
    size = tactic.packed_bytes(**{name: named[name] for name in tactic.pack_args})
    kept = num_bytes(named["scales"]) if tactic.op in ("linear_w8a8", "linear_w8a16") else 0
    return 0 if size is None else size - kept
