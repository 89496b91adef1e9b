"""simulation: what a cluster would do with a load, without the cluster.

Decides: which replica a simulated request goes to, how long a step takes. Speaks: a load and a description of devices
in, an `Outcome` out. Owns: the virtual clock; schedulers and block pools are the real ones. Never: tensors' values,
devices, the time of day. Door: `quire.simulation.cluster.simulate`.
"""
