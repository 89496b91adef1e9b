"""weights: tensors from where a model lies, one at a time.

Decides: where a model's files are, which file holds which tensor, whether a checkpoint fits a network.
Speaks: `WeightSource` of `quire.graph`. Owns: open files and the folder of converted checkpoints.
Never: graph edits, model numbers, tensors kept after they were read. Doors: `open.open_weights`,
`dummy.DummyWeights`, `resolve.resolve_model`.
"""
