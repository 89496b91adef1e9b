"""The tables of `quire plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from quire.cli.plan import freed_bytes, lengths_of
from quire.engine.capacity import DEFAULT_KV_BYTES, budget_bytes
from quire.plan.memory import mib

if TYPE_CHECKING:
    from quire.cli.plan import Case


def print_plan(asked: Case, others: list[Case], available: int) -> None:
    """Print where the bytes go, how many sequences fit, and what changes would give.

    Args:
        asked: With the settings that were given.
        others: With one thing changed each.
        available: Bytes that the machine has for it.
    """
    console = Console(soft_wrap=True)
    console.print(_terms(asked, budget_bytes(asked.config, available)))
    console.print(_budget(asked, available), highlight=False, end="\n\n")
    console.print(_sequences(asked))
    console.print(_what_ifs(asked, others))
    if any(other.name.startswith("quantization") and freed_bytes(asked, other) <= 0 for other in others):
        console.print("A scheme that frees nothing has no kernel on this device: its weights are expanded when loaded.")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < i < 3 else "left", no_wrap=i < 3)
    return table


def _terms(asked: Case, budget: int) -> Table:
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
    for length in lengths_of(asked):
        table.add_row(str(length), str(asked.num_sequences(length)))
    return table


def _what_ifs(asked: Case, others: list[Case]) -> Table:
    length = asked.max_model_len
    title = f"What if (quantized sizes are estimates from shapes; sequences of {length} tokens)"
    table = _table(title, "change", "frees", "sequences", "more")
    before = asked.num_sequences(length)
    for other in others:
        number = other.num_sequences(length)
        fits = f"{number - before:+d}" if other.memory is not None else "does not fit"
        table.add_row(other.name, mib(freed_bytes(asked, other)), str(number), fits)
    return table
