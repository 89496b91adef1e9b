"""kv_cache: which block holds which tokens.

Decides: which free block is taken next, which cached prefix a prompt may share, when a shared block must be copied.
Speaks: integers, block ids and token ids. Owns: reference counts, the free list, the map from hash to block.
Never: torch, K/V bytes, requests, who runs. Door: `quire.kv_cache.cache.KVCache` and
`quire.kv_cache.block_table.BlockTable`.
"""
