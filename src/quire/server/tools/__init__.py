"""Tool calls: what a model writes when it calls a function, read piece by piece."""
