"""quantization: which numbers stand for a layer's weights, activations and cache, and what that costs.

Decides: scales, from calibration text or a quantized checkpoint; the verdict on accuracy. Speaks: networks and batches
of token ids in, tensors by name and plain numbers out. Owns: activations while it calibrates. Never: requests.
Door: `quire.quantization.calibration`, `quire.quantization.evaluation`.
"""
