"""`DeclaredWeights`: the half of a `WeightSource` that follows from what a network declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec


class DeclaredWeights:
    """Names and specs of a network's weights, in its order.

    Args:
        declared: The weights by name.
        origin: Where they come from, for errors.
    """

    def __init__(self, declared: Mapping[str, TensorSpec], origin: str) -> None:
        self._declared = dict(declared)
        self._origin = origin

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._declared.keys()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor as the network declares it.

        Raises:
            PlanError: There is no such tensor.
        """
        if name not in self._declared:
            raise PlanError(f"{self._origin}: expected a declared weight, got {name!r}.")
        return self._declared[name]
