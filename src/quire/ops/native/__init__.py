"""Kernels in C++ (`csrc/`), compiled per set of instructions and chosen by what the processor has."""
