"""`quire plan MODEL`: where the bytes would go, and how many sequences fit; nothing is loaded."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import msgspec

from quire.cli.model import add_model
from quire.cli.options import read_fields, table
from quire.core.config import BuildConfig, EngineConfig

LENGTHS = (128, 512, 2048, 8192, 32768, 131072)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--graph", action="store_true", help="print the network, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Compute and print the memory plan."""
    from quire.builder.build import open_plan
    from quire.engine.resolve import mib, resolve

    plan = open_plan(options.model, read_fields(BuildConfig, options))
    config, memory = resolve(read_fields(EngineConfig, options), plan)
    lengths = [length for length in LENGTHS if length < config.max_model_len] + [config.max_model_len]
    if options.json:
        record = {**asdict(memory), "kv_bytes": memory.kv_bytes, "max_model_len": config.max_model_len,
                  "num_sequences": {length: memory.num_sequences(length) for length in lengths}}  # fmt: skip
        print(msgspec.json.encode(record).decode())
        return
    if options.graph:
        print(plan.network, end="\n\n")
    total = memory.weight_bytes + memory.workspace_bytes + memory.kv_bytes
    rows = [
        ("weights", mib(memory.weight_bytes)),
        ("workspace", f"{mib(memory.workspace_bytes)} (steps of at most {config.max_num_batched_tokens} tokens)"),
        ("KV cache", f"{mib(memory.kv_bytes)} ({memory.num_blocks} blocks of {memory.block_size} tokens)"),
        ("total", mib(total)),
    ]
    print(table(rows), end="\n\n")
    print(table([("tokens each", "sequences at once"), *((str(n), str(memory.num_sequences(n))) for n in lengths)]))
