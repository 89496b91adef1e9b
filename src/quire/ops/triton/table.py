"""The tactics of NVIDIA GPUs, by op in order of preference: the first that is valid is the default."""

from __future__ import annotations

from quire.ops.tactic import Tactic
from quire.ops.triton import attention, attention_tiles, rope

TACTICS: tuple[Tactic, ...] = (
    Tactic("rope", "rows", rope.rope),
    Tactic("append_kv", "rows", rope.append_kv),
    Tactic("rope_append_kv", "rows", rope.rope_append_kv),
    Tactic("attention", "splits", attention.attention, is_valid=attention.is_valid,
           workspace_bytes=attention_tiles.attention_bytes, prepare=attention.prepare,
           prepare_reads=("seq_lens", "query_start_loc", "window"), prepared_bytes=attention_tiles.items_bytes),
)  # fmt: skip
