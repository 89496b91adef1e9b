"""ops: every tensor operation, once.

Decides: what an op means (the reference in plain torch), what it accepts, what it mutates, which tactics exist.
Speaks: tensors and `TensorSpec`s. Owns: nothing at run time. Never: requests, configurations, files.
Door: `quire.ops.registry.OPS`, and `quire.ops.tactics` for what implements them on a device.
"""
