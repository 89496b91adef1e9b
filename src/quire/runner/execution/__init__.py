"""A Plan's graph as calls: constants folded and packed, tactics bound, compiled kernels joined to programs."""
