"""runner: integers to tensors to logits to ids.

Decides: how a step is laid out in tensors. Speaks: `SchedulerOutput` in, `ModelOutput` out. Owns: all device memory,
namely packed weights, the KV cache and the rows of running samples. Never: who runs next, text.
Door: `quire.runner.model_runner.make_runner`.
"""
