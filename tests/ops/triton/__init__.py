"""Tests of kernels in Triton: interpreted without a GPU, on the GPU where there is one."""
