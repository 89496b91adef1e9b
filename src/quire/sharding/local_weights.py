"""`LocalWeights`: the weights of one rank, each a part of a weight of the whole model, or all of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.ops.spec import TensorSpec
from quire.plan.weight_source import DeclaredWeights, Part, WeightSource, read_part


class LocalWeights(DeclaredWeights):
    """A `WeightSource` that reads no more of another source than a rank needs.

    Args:
        declared: The rank's weights.
        parts: Name in the other source, and which part of it, by the name of a weight that is not all of one.
        source: The weights of the whole model.
    """

    def __init__(
        self, declared: Mapping[str, TensorSpec], parts: Mapping[str, tuple[str, Part]], source: WeightSource
    ) -> None:
        super().__init__(declared, "weights of a rank")
        self._parts = dict(parts)
        self._source = source

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, or the part of it that is this rank's.

        Raises:
            PlanError: There is no such tensor, or it cannot be read.
        """
        self.spec(name)
        if name not in self._parts:
            return self._source.read(name)
        return read_part(self._source, *self._parts[name])
