"""Tactics for NVIDIA GPUs, written in Triton. Nothing outside this folder imports Triton; nothing imports it unasked.

Each file holds one stem: its kernels, then the functions that launch them, with the signature of the op. A row's bits
never depend on the rows beside it: no kernel lets the number of rows choose the order in which it adds.
"""
