"""sharding: which part of a network a rank executes, decided when a plan is loaded.

Decides: how weights, heads and layers are dealt out, where ranks must exchange tensors, what that costs in bytes.
Speaks: `Plan` in, `Plan` out. Owns: nothing. Never: devices, processes, requests. Door: `quire.sharding.shard.shard`.
"""
