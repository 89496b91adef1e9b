"""What runs ops on NVIDIA GPUs: the table of their tactics, whose kernels are in `triton`, and the vendor's library."""
