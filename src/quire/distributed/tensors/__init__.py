"""distributed.tensors: how tensors get from rank to rank: between GPUs, processes, or threads of one process.

Door: `quire.distributed.tensors.communicator`.
"""
