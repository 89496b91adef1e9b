"""`LoadedPlan`: a Plan's packed weights and its KV cache, on one device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quire.core.errors import CapacityError
from quire.core.log import get_logger
from quire.graph.nodes import is_call
from quire.ops.collective.exchange import EXCHANGES
from quire.plan.device import this_device, torch_device
from quire.plan.plan import Plan
from quire.plan.tactics import choices, unusable
from quire.plan.weight_source import own_pages
from quire.runner.execution.executor import Executor

_log = get_logger(__name__)


class LoadedPlan:
    """What a runner executes, and where keys and values lie.

    Args:
        plan: What to execute.
        num_blocks: KV cache blocks, the null block 0 included.
        block_size: Tokens in a block.
        device: Kind of device.
        deterministic: Use only tactics that keep a row's bits.
        on_progress: Called with the number of weights loaded so far.

    Attributes:
        plan: What to execute.
        block_size: Tokens in a block.
        device: Kind of device.
        is_shared: Whether it is a part of a network, and exchanges tensors with other ranks.

    Raises:
        PlanError: A weight is missing or damaged.
        CapacityError: The KV cache cannot be allocated.
    """

    def __init__(
        self,
        plan: Plan,
        num_blocks: int,
        block_size: int,
        device: str,
        deterministic: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.plan = plan
        self.block_size = block_size
        self.device = device
        self.is_shared = any(is_call(node, *EXCHANGES) for node in plan.network.calls())
        self._num_blocks = num_blocks
        here = this_device(device)
        self._chosen = choices(plan.tactics, here, plan.network, deterministic=deterministic)
        for said in unusable(plan.tactics, here, plan.network, deterministic=deterministic):
            _log.info("tactics: %s", said)
        self._executor: Executor | None = self._load(on_progress)
        self._kv_cache: torch.Tensor | None = None
        self._caches: dict[str, torch.Tensor] = {}
        self._allocate()

    def check_awake(self) -> None:
        """Find out whether steps can be run.

        Raises:
            CapacityError: Weights or the KV cache have been freed.
        """
        if self._executor is None or self._kv_cache is None:
            raise _asleep()

    @property
    def executor(self) -> Executor:
        """What runs the network.

        Raises:
            CapacityError: It has been freed.
        """
        if self._executor is None:
            raise _asleep()
        return self._executor

    @property
    def kv_cache(self) -> torch.Tensor:
        """[num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim].

        Raises:
            CapacityError: It has been freed.
        """
        if self._kv_cache is None:
            raise _asleep()
        return self._kv_cache

    @property
    def caches(self) -> dict[str, torch.Tensor]:
        """Each layer's KV cache by the name of the network's input.

        Raises:
            CapacityError: It has been freed.
        """
        if self._kv_cache is None:
            raise _asleep()
        return self._caches

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache."""
        weights = self._executor.num_bytes() if self._executor is not None else 0
        return weights + (self._kv_cache.nbytes if self._kv_cache is not None else 0)

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well."""
        self._kv_cache, self._caches = None, {}
        if level > 1:
            self._executor = None
        if torch_device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        if self._executor is None:
            self._executor = self._load()
        if self._kv_cache is None:
            self._allocate()

    def _load(self, on_progress: Callable[[int], None] | None = None) -> Executor:
        return Executor(self.plan.network, self.plan.weights, self.device, on_progress, self._chosen)

    def _allocate(self) -> None:
        self._kv_cache = self._zeros()
        self._caches = dict(zip(self.plan.kv_caches, self._kv_cache, strict=True))

    def _zeros(self) -> torch.Tensor:
        """Return a KV cache of zeros, 64-byte aligned.

        On a CPU in fresh pages of the system, which cost nothing before they are written; `torch.zeros` writes them.
        """
        spec, dtype = self.plan.spec, self.plan.kv_cache.dtype
        shape = (spec.num_layers, 2, self._num_blocks, spec.num_kv_heads, self.block_size, spec.head_dim)
        num_bytes = self.plan.kv_bytes_per_token * self.block_size * self._num_blocks
        try:
            if torch_device(self.device).type == "cuda":
                return torch.zeros(num_bytes, dtype=torch.uint8, device="cuda").view(dtype).view(shape)
            return torch.frombuffer(own_pages(num_bytes), dtype=torch.uint8).view(dtype).view(shape)
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise CapacityError(
                f"KV cache: expected {num_bytes / 2**20:,.0f} MiB in one piece, got a refusal from the system. "
                "Lower kv_cache_memory_bytes or gpu_memory_utilization."
            ) from None


def _asleep() -> CapacityError:
    return CapacityError("the model sleeps or is closed: expected weights and KV cache, got none; call wake_up.")
