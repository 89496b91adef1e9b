"""`DummyWeights`: seeded values for `load_format="dummy"`, made from names and shapes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from quire.ops.spec import TensorSpec
from quire.plan.weight_source import DeclaredWeights, empty_weight

_STD = 0.02
_BIAS_STD = 0.002
# Elements that are drawn; larger tensors repeat them. A prime, so that no two rows of a matrix are the same.
_DRAWN = 1_000_003


class DummyWeights(DeclaredWeights):
    """A `WeightSource` of random values: normal with deviation 0.02 for matrices, 0.002 for biases, ones for norms.

    Integers of a quantized checkpoint are random bits.

    A tensor's values depend only on the seed, its name and its shape, up to rounding to its dtype. Only the first
    million are drawn, at 150 million a second; the rest is as fast as memory: 8 billion parameters take seconds.

    Args:
        declared: The weights to make, by name.
        seed: Any integer.
    """

    def __init__(self, declared: Mapping[str, TensorSpec], seed: int) -> None:
        super().__init__(declared, "dummy weights")
        self._seed = seed

    def read(self, name: str) -> torch.Tensor:
        """Make one tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        spec = self.spec(name)
        shape = [size for size in spec.shape if isinstance(size, int)]
        if len(shape) == 1 and not name.endswith("bias"):
            return torch.ones(shape, dtype=spec.dtype)
        flat = empty_weight(spec).view(-1)
        generator = torch.Generator().manual_seed(_derive(self._seed, name, shape))
        drawn = flat[:_DRAWN]
        if spec.dtype.is_floating_point:
            std = _STD if len(shape) > 1 else _BIAS_STD
            drawn.copy_(torch.empty(drawn.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))
        else:
            limits = torch.iinfo(spec.dtype)
            drawn.random_(limits.min, limits.max, generator=generator)
        for start in range(_DRAWN, flat.numel(), _DRAWN):
            part = flat[start : start + _DRAWN]
            part.copy_(drawn[: part.numel()])
        return flat.view(shape)


def _derive(seed: int, name: str, shape: list[int]) -> int:
    """Return a 63-bit seed of one tensor's own."""
    text = f"{seed}\n{name}\n{shape}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
