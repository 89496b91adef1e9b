"""`WeightSource`: where a Plan's weights come from, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from quire.ops.spec import TensorSpec


class WeightSource(Protocol):
    """Tensors by checkpoint name, read when asked for and never kept."""

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        ...

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor without reading its data.

        Raises:
            PlanError: There is no such tensor.
        """
        ...

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into memory of its own (contiguous, 64-byte aligned, writable).

        Raises:
            PlanError: It is missing, truncated or damaged; the message names file, tensor, expected and got.
        """
        ...
