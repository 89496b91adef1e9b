"""distributed: processes that compute together, and what moves between them.

Decides: who is in which group, how tensors and messages get from rank to rank, whether a rank still lives.
Speaks: tensors, bytes, `Mapping`. Owns: process groups, worker processes, sockets. Never: knows why it is called. Door:
`quire.distributed.tensors.communicator`.
"""
