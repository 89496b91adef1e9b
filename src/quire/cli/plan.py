"""`quire plan MODEL`: where the bytes would go, how many sequences fit, and what would change it; nothing is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from quire.cli.options import add_model, read_bytes, read_fields
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import CapacityError
from quire.core.mapping import Mapping

if TYPE_CHECKING:
    from rich.table import Table

    from quire.plan.memory import MemoryNeeds, MemoryPlan
    from quire.plan.plan import Plan
    from quire.sharding.cost import RankCost

LENGTHS = (128, 512, 2048, 8192, 32768, 131072)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="plan for a machine with this much memory, for example 16GiB; default: this one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--graph", action="store_true", help="print the network, too")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Case:
    """A plan and the settings it would run with.

    Attributes:
        name: What differs from what was asked for.
        plan: The model.
        config: How it would run.
        needs: What it needs beside the KV cache.
        memory: Where the bytes would go; None if it does not fit.
        max_model_len: Longest sequence, in tokens.
        cost: What it holds and exchanges as one of several ranks.
    """

    name: str
    plan: Plan
    config: EngineConfig
    needs: MemoryNeeds
    memory: MemoryPlan | None
    max_model_len: int
    cost: RankCost | None = None

    def num_sequences(self, length: int) -> int:
        """Return how many sequences of `length` tokens fit at once."""
        return self.memory.num_sequences(length) if self.memory is not None else 0


def run(options: argparse.Namespace) -> None:
    """Compute and print the memory plan.

    Raises:
        ConfigError: A setting contradicts the model or another setting.
        CapacityError: The model does not fit; the terms are printed all the same.
    """
    from quire.builder.estimate import estimate_quantized
    from quire.builder.open import open_plan
    from quire.engine.resolve import resolve
    from quire.plan.device import device_kind
    from quire.runner.device import PROCESS_BYTES, available_memory_bytes

    build, config = read_fields(BuildConfig, options), read_fields(EngineConfig, options)
    device = device_kind(config.device)
    available = available_memory_bytes(device) if options.memory is None else read_bytes("--memory", options.memory)
    if options.memory is not None and device == "cpu":
        available = max(0, available - PROCESS_BYTES)
    plain = open_plan(options.model, replace(build, quantization=None, kv_cache_dtype="auto"))
    plan = estimate_quantized(plain, build) or plain
    if options.graph:
        print(plan.network, end="\n\n")
    if device == "cpu":  # one machine's memory is that of all its ranks
        available //= config.tensor_parallel_size * config.pipeline_parallel_size
    ranks = [_rank_case("as asked for", plan, config, available, mapping) for mapping in _mappings(plan, config)]
    asked = min(ranks, key=lambda rank: (rank.num_sequences(rank.max_model_len), -rank.needs.total))
    mapping = None if asked.cost is None else asked.cost.mapping
    others = [_rank_case(*changed, available, mapping) for changed in _changes(plain, plan, build, config)]
    _show(options.json, asked, others, available, ranks)
    if asked.memory is None:
        resolve(config, asked.plan, available)  # says what does not fit


def _mappings(plan: Plan, config: EngineConfig) -> list[Mapping | None]:
    """Return the first rank of each stage, which holds no less than the others; None for a model on one device."""
    tp_size, pp_size = config.tensor_parallel_size, config.pipeline_parallel_size
    if tp_size * pp_size == 1:
        return [None]
    from quire.sharding.cost import pp_partition_of

    first = Mapping(tp_size * pp_size, tp_size=tp_size, pp_size=pp_size, pp_partition=pp_partition_of(plan, config))
    return [replace(first, rank=stage * tp_size) for stage in range(pp_size)]


def _rank_case(name: str, plan: Plan, config: EngineConfig, available: int, mapping: Mapping | None) -> Case:
    """Return what a rank would hold, or the one device there is."""
    from quire.sharding.cost import rank_cost
    from quire.sharding.shard import shard

    if mapping is None:
        return _case(name, plan, config, available)
    local = shard(plan, mapping)
    return replace(_case(name, local, config, available), cost=rank_cost(local, mapping))


def _case(name: str, plan: Plan, config: EngineConfig, available: int) -> Case:
    from quire.engine.capacity import needs_of
    from quire.engine.resolve import longest_sequence, resolve

    longest = longest_sequence(config, plan, available)
    needs = needs_of(config, plan, longest)
    try:
        scheduler, memory = resolve(config, plan, available)
    except CapacityError:
        return Case(name, plan, config, needs, None, longest)
    return Case(name, plan, config, needs, memory, scheduler.max_model_len)


def _changes(
    plain: Plan, plan: Plan, build: BuildConfig, config: EngineConfig
) -> Iterator[tuple[str, Plan, EngineConfig]]:
    """Yield what one could do about memory, each with the plan and the settings that it would give."""
    from quire.builder.estimate import estimate_quantized

    changes = {
        "kv_cache_dtype=int8": replace(build, kv_cache_dtype="int8"),
        "kv_cache_dtype=fp8": replace(build, kv_cache_dtype="fp8"),
        "quantization=w8a8": replace(build, quantization="w8a8"),
        "quantization=w4a16": replace(build, quantization="w4a16"),
    }
    for name, changed in changes.items():
        estimate = estimate_quantized(plain, changed) if changed != build else None
        if estimate is not None:
            yield name, estimate, config
    if config.max_num_batched_tokens > 1:
        half = config.max_num_batched_tokens // 2
        yield f"max_num_batched_tokens={half}", plan, replace(config, max_num_batched_tokens=half)


def _show(is_json: bool, asked: Case, others: list[Case], available: int, ranks: list[Case]) -> None:
    if is_json:
        record = {**_record(asked, others, available), **({"ranks": _rank_records(ranks)} if asked.cost else {})}
        print(msgspec.json.encode(record).decode())
    else:
        _print(asked, others, available, ranks)


def _rank_records(ranks: list[Case]) -> list[dict[str, Any]]:
    """Return the bytes of the first rank of each stage; what it sends is for one token of one sequence."""
    return [
        {
            "rank": cost.mapping.rank,
            "num_layers": cost.layers,
            "stored_weight_bytes": cost.weight_bytes,
            "weight_bytes": case.needs.weights,
            "kv_bytes_per_token": cost.kv_bytes_per_token,
            "num_blocks": case.memory.num_blocks if case.memory is not None else 0,
            "sent_bytes_per_token": cost.sent_bytes(1, 1),
            "least_bytes_per_token": cost.least_bytes(1, 1),
        }
        for case in ranks
        if (cost := case.cost) is not None
    ]


def _lengths(case: Case) -> list[int]:
    """Return the sequence lengths to show: round ones, and the longest that there may be."""
    return [length for length in LENGTHS if length < case.max_model_len] + [case.max_model_len]


def _freed_bytes(asked: Case, other: Case) -> int:
    """Return what a change would free, with as many tokens in the KV cache; without room for one, with two blocks."""
    tokens = asked.config.block_size * (asked.memory.num_blocks if asked.memory is not None else 2)
    per_token = asked.plan.kv_bytes_per_token - other.plan.kv_bytes_per_token
    return asked.needs.total - other.needs.total + tokens * per_token


def _record(asked: Case, others: list[Case], available: int) -> dict[str, Any]:
    from quire.engine.capacity import budget_bytes

    needs, memory = asked.needs, asked.memory
    kv = (
        {"num_blocks": memory.num_blocks, "kv_bytes": memory.kv_bytes, "total_bytes": memory.total_bytes}
        if memory
        else {}
    )
    return {
        "fits": memory is not None,
        "available_bytes": available,
        "budget_bytes": budget_bytes(asked.config, available),
        "weight_bytes": needs.weights,
        "workspace_bytes": needs.workspace,
        "sampling_bytes": needs.sampling,
        "overhead_bytes": needs.overhead,
        "largest_call": needs.largest,
        "kv_bytes_per_block": asked.plan.kv_bytes_per_token * asked.config.block_size,
        "block_size": asked.config.block_size,
        **kv,
        "max_model_len": asked.max_model_len,
        "num_sequences": {length: asked.num_sequences(length) for length in _lengths(asked)},
        "what_if": [
            {
                "change": other.name,
                "fits": other.memory is not None,
                "freed_bytes": _freed_bytes(asked, other),
                "num_sequences": other.num_sequences(asked.max_model_len),
            }
            for other in others
        ],
    }


def _print(asked: Case, others: list[Case], available: int, ranks: list[Case]) -> None:
    """Print where the bytes go, how many sequences fit, and what changes would give."""
    from rich.console import Console

    from quire.engine.capacity import budget_bytes

    console = Console(soft_wrap=True)
    if asked.cost is not None:
        console.print(_ranks(ranks))
        console.print(f"What follows is of rank {asked.cost.mapping.rank}, which has the least room.", end="\n\n")
    console.print(_terms(asked, budget_bytes(asked.config, available)))
    console.print(_budget(asked, available), highlight=False, end="\n\n")
    console.print(_sequences(asked))
    console.print(_what_ifs(asked, others))
    if any(other.name.startswith("quantization") and _freed_bytes(asked, other) <= 0 for other in others):
        console.print("A scheme that frees nothing has no kernel on this device: its weights are expanded when loaded.")


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < i < 3 else "left", no_wrap=i < 3)
    return table


def _ranks(ranks: list[Case]) -> Table:
    """Return what the first rank of each stage holds, and what it sends for a token."""
    from quire.plan.memory import mib

    table = _table("Ranks (the first of each stage)", "rank", "weights", "KV a token", "layers, bytes sent a token")
    for case, record in zip(ranks, _rank_records(ranks), strict=True):
        sent, least = record["sent_bytes_per_token"], record["least_bytes_per_token"]
        said = f"{record['num_layers']} layers; {sent:,} bytes, at least {least:,.0f} in this layout"
        table.add_row(str(record["rank"]), mib(case.needs.weights), f"{record['kv_bytes_per_token']:,}", said)
    return table


def _terms(asked: Case, budget: int) -> Table:
    from quire.plan.memory import mib

    needs, memory, config = asked.needs, asked.memory, asked.config
    kv = memory.kv_bytes if memory is not None else 2 * asked.plan.kv_bytes_per_token * config.block_size
    blocks = f"{memory.num_blocks} blocks" if memory is not None else "the smallest: 2 blocks"
    rows = [
        ("weights", needs.weights, "as executed"),
        ("workspace", needs.step, f"steps of at most {config.max_num_batched_tokens} tokens; the network at most "
                                  f"{mib(needs.workspace)}, then sampling {mib(needs.sampling)}"),
        ("overhead", needs.overhead, "code, kernels, what the allocator wastes"),
        ("KV cache", kv, f"{blocks} of {config.block_size} tokens"),
    ]  # fmt: skip
    table = _table("Memory", "term", "bytes", "share", "what")
    for name, size, what in (*rows, ("total", needs.total + kv, f"of a budget of {mib(budget)}")):
        table.add_row(name, mib(size), f"{100 * size / (needs.total + kv):.1f} %", what)
    return table


def _budget(asked: Case, available: int) -> str:
    """Return in words what the budget is, and whether it or something else limits the KV cache."""
    from quire.engine.capacity import DEFAULT_KV_BYTES, budget_bytes
    from quire.plan.memory import mib

    budget, memory = budget_bytes(asked.config, available), asked.memory
    share = asked.config.gpu_memory_utilization
    said = f"{mib(available)} available" + ("" if budget == available else f", of which {share:g} may be used")
    if memory is None:
        return f"{said}. It does not fit."
    if memory.total_bytes + memory.kv_bytes_per_block > budget or asked.config.kv_cache_memory_bytes:
        return f"{said}."
    most = (budget - asked.needs.total) // memory.kv_bytes_per_block * memory.kv_bytes_per_block
    if memory.kv_bytes + memory.kv_bytes_per_block > DEFAULT_KV_BYTES:
        return f"{said}. The KV cache is what it is by default; kv_cache_memory_bytes may be up to {most}."
    return f"{said}. More KV cache is of no use for {asked.config.max_num_seqs} sequences (max_num_seqs)."


def _sequences(asked: Case) -> Table:
    table = _table("Concurrency", "tokens each", "sequences at once")
    for length in _lengths(asked):
        table.add_row(str(length), str(asked.num_sequences(length)))
    return table


def _what_ifs(asked: Case, others: list[Case]) -> Table:
    from quire.plan.memory import mib

    length = asked.max_model_len
    title = f"What if (quantized sizes are estimates from shapes; sequences of {length} tokens)"
    table = _table(title, "change", "frees", "sequences", "more")
    before = asked.num_sequences(length)
    for other in others:
        number = other.num_sequences(length)
        fits = f"{number - before:+d}" if other.memory is not None else "does not fit"
        table.add_row(other.name, mib(_freed_bytes(asked, other)), str(number), fits)
    return table
