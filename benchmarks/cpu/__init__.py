"""Compiled CPU kernels beside what the machine can read and multiply, and beside the tactics of torch."""
