"""plan: a network with its weights, bound for execution, in memory and on disk.

Decides: what an engine directory holds and when it is sound, what constants are worth, what fits into memory.
Speaks: `Plan`. Owns: nothing but open files. Never: editing graphs, devices, requests. Door: `quire.plan.plan.Plan`.
"""
