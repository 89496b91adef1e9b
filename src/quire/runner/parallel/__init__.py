"""runner.parallel: a runner whose work is done by other processes, each of which has a part of the model.

Decides: what a driver and its workers say to each other. Speaks: as every runner. Owns: nothing of a device; a worker
owns its part. Never: how a model is cut (`sharding`), how processes are watched and tensors sent (`distributed`).
Doors: `ranks.Ranks`, and `worker`, which is a program.
"""
