"""Two calls as one kernel, for steps so small that the start of a kernel counts; larger ones run the two."""
