"""Kernels of `csrc/`, alone, beside what this machine can do at most."""
