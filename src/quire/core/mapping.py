"""`Mapping`: which part of a model the process of a rank holds, when a model is spread over several."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NoReturn

from quire.core.config import at_least
from quire.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where one rank sits in the grid of tensor, context and pipeline parallelism.

    Ranks count through tensor parallelism first, then context, then pipeline parallelism, so that the ranks that talk
    most are neighbours: `rank = (pp_rank * cp_size + cp_rank) * tp_size + tp_rank`.

    Attributes:
        world_size: Processes in all, `tp_size * cp_size * pp_size`.
        rank: This one, in [0, world_size).
        gpus_per_node: Ranks on one machine.
        tp_size: Ranks that share every layer.
        pp_size: Stages into which the layers are cut.
        cp_size: Ranks that share the tokens of a sequence.
        moe_tp_size: Ranks that share an expert; -1: what `moe_ep_size` leaves of `tp_size`.
        moe_ep_size: Ranks over which experts are dealt out; -1: what `moe_tp_size` leaves, or 1 if neither is given.
        pp_partition: Layers of each stage; None: as many each, and what does not divide goes to the first stages.

    Raises:
        ConfigError: A size is not positive, the products do not fit, or the rank is not below world_size.

    Example:
        >>> mapping = Mapping(world_size=4, rank=3, tp_size=2, pp_size=2)
        >>> mapping.tp_rank, mapping.pp_rank, mapping.tp_group, list(mapping.pp_layers(5))
        (1, 1, [2, 3], [3, 4])
    """

    world_size: int = 1
    rank: int = 0
    gpus_per_node: int = 8
    _: KW_ONLY
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    moe_tp_size: int = -1
    moe_ep_size: int = -1
    pp_partition: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("world_size", "gpus_per_node", "tp_size", "pp_size", "cp_size"):
            at_least(name, getattr(self, name), 1)
        at_least("rank", self.rank, 0)
        if self.tp_size * self.pp_size * self.cp_size != self.world_size:
            sizes = f"tp_size {self.tp_size} * pp_size {self.pp_size} * cp_size {self.cp_size}"
            _fail("world_size", f"{sizes} = {self.tp_size * self.pp_size * self.cp_size}", self.world_size)
        if self.rank >= self.world_size:
            _fail("rank", f"one below world_size {self.world_size}", self.rank)
        self._resolve_moe()
        if self.pp_partition is not None:
            object.__setattr__(self, "pp_partition", tuple(self.pp_partition))
            self._check_partition(self.pp_partition)

    def _check_partition(self, partition: tuple[int, ...]) -> None:
        for size in partition:
            at_least("pp_partition", size, 1)
        if len(partition) != self.pp_size:
            _fail("pp_partition", f"numbers of layers for {self.pp_size} stages", ", ".join(map(str, partition)))

    def _resolve_moe(self) -> None:
        """Replace -1 by what the other of the two leaves."""
        tp, ep = self.moe_tp_size, self.moe_ep_size
        for name, size in (("moe_tp_size", tp), ("moe_ep_size", ep)):
            if size != -1:
                at_least(name, size, 1)
        if ep == -1:
            ep = 1 if tp == -1 else self.tp_size // tp
        if tp == -1:
            tp = self.tp_size // ep
        if tp * ep != self.tp_size:
            _fail("moe_tp_size, moe_ep_size", f"a product of tp_size {self.tp_size}", f"{tp} * {ep}")
        object.__setattr__(self, "moe_tp_size", tp)
        object.__setattr__(self, "moe_ep_size", ep)

    @property
    def tp_rank(self) -> int:
        """Place among the ranks that share every layer."""
        return self.rank % self.tp_size

    @property
    def cp_rank(self) -> int:
        """Place among the ranks that share the tokens of a sequence."""
        return self.rank // self.tp_size % self.cp_size

    @property
    def pp_rank(self) -> int:
        """Stage of the pipeline."""
        return self.rank // self._stage_size

    @property
    def tp_group(self) -> list[int]:
        """Ranks that differ from this one in `tp_rank` alone, this one included."""
        first = self.rank - self.tp_rank
        return list(range(first, first + self.tp_size))

    @property
    def cp_group(self) -> list[int]:
        """Ranks that differ from this one in `cp_rank` alone, this one included."""
        first = self.rank - self.cp_rank * self.tp_size
        return list(range(first, first + self._stage_size, self.tp_size))

    @property
    def pp_group(self) -> list[int]:
        """Ranks that differ from this one in `pp_rank` alone, this one included."""
        return list(range(self.rank % self._stage_size, self.world_size, self._stage_size))

    @property
    def is_first_pp_rank(self) -> bool:
        """Whether this is the stage that embeds tokens."""
        return self.pp_rank == 0

    @property
    def is_last_pp_rank(self) -> bool:
        """Whether this is the stage that computes logits."""
        return self.pp_rank == self.pp_size - 1

    @property
    def prev_pp_rank(self) -> int:
        """Rank of the stage before, of the last for the first."""
        return (self.rank - self._stage_size) % self.world_size

    @property
    def next_pp_rank(self) -> int:
        """Rank of the stage after, of the first for the last."""
        return (self.rank + self._stage_size) % self.world_size

    @property
    def node_rank(self) -> int:
        """Machine that this rank is on."""
        return self.rank // self.gpus_per_node

    @property
    def local_rank(self) -> int:
        """Place on its machine."""
        return self.rank % self.gpus_per_node

    @property
    def _stage_size(self) -> int:
        return self.tp_size * self.cp_size

    def pp_layers(self, num_layers: int) -> range:
        """Return the layers of this rank's stage; what does not divide evenly goes to the first stages, one each.

        Raises:
            ConfigError: There are fewer layers than stages, or `pp_partition` is of another number of layers.
        """
        if self.pp_partition is not None:
            if sum(self.pp_partition) != num_layers:
                _fail("pp_partition", f"{num_layers} layers in all", ", ".join(map(str, self.pp_partition)))
            start = sum(self.pp_partition[: self.pp_rank])
            return range(start, start + self.pp_partition[self.pp_rank])
        if num_layers < self.pp_size:
            _fail("num_layers", f"at least one for each of {self.pp_size} stages", num_layers)
        each, more = divmod(num_layers, self.pp_size)
        start = self.pp_rank * each + min(self.pp_rank, more)
        return range(start, start + each + (self.pp_rank < more))


def _fail(name: str, expected: str, got: object) -> NoReturn:
    raise ConfigError(f"{name}: expected {expected}, got {got}.")
