"""graph: the network and the Plan as data.

Decides: what a network is, when it is legal, how it prints, how a Plan lies on disk, what it computes (the reference
interpreter). Speaks: `Network`, `Tensor`, `Plan`. Owns: the graph. Never: editing for speed, requests, devices.
Door: `quire.graph.network`, `quire.graph.functional`, `quire.graph.layers`, `quire.plan.plan`.
"""
