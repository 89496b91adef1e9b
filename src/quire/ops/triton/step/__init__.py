"""Kernels for what surrounds the network in a step: laying out the batch before it, choosing tokens after it.

No op has them as tactics; `runner` and `sampling` call them. As with all kernels here, what a row gets never depends on
the rows beside it, and nothing waits for the device.
"""
