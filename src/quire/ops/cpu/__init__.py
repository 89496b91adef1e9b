"""CPU tactics: the same signatures as the references, and results of a row that never depend on the other rows.

What torch 2.13 gives on a CPU, measured over row counts, positions and threads: `exp`, `tanh`, `erf`, `log`, `sqrt`
and last-dimension `softmax` treat every element alike wherever it lies; `sigmoid`, `silu`, `gelu` and `exp2` in
float32 do not (the vectorised body and the scalar tail round differently). GEMMs change a row's bits with the number
of rows for some shapes. The tactics here are built from the first kind, and prove the second.
"""
