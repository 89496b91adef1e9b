"""What Quire reaches on one GPU, beside what the GPU reaches: `python -m benchmarks.gpu.run`."""
