"""Ops of networks that several ranks share: what they exchange (`exchange`), what each does with its share (`share`).

`distributed.tensors.communicator.current` does the work. So a sharded network can be printed, planned and run like any
other; whoever runs it says first which rank it is for (`distributed.tensors.communicator.use`).
"""
