"""`Step`: the `SchedulerOutput` under construction."""

from __future__ import annotations

from collections.abc import Iterable

from quire.core.request import NewRow, ScheduledRow, SchedulerOutput
from quire.kv_cache.block_table import Extension


class Step:
    """What has been decided for the step so far.

    Attributes:
        budget: Tokens that may still be scheduled.
        logits: Tokens whose logits may still be computed.
        prefill: How many of the tokens may still go to rows that have more than one to compute.
        places: How many rows may still enter. Those in the middle of a prompt may always: they are in budgets' hands.
        rows: Shares, in batch order.
        new_rows: Those of them that the runner does not hold yet.
    """

    __slots__ = (
        "_copies",
        "_fresh",
        "_max_budget",
        "_replaced",
        "budget",
        "logits",
        "new_rows",
        "places",
        "prefill",
        "rows",
    )

    def __init__(self, budget: int, logits: int, prefill: int, places: int) -> None:
        self.budget = self._max_budget = budget
        self.logits = logits
        self.prefill = prefill
        self.places = places
        self.rows: list[ScheduledRow] = []
        self.new_rows: list[NewRow] = []
        self._replaced: list[tuple[int, int, int]] = []
        self._copies: list[tuple[int, int]] = []
        self._fresh: list[int] = []

    @property
    def has_room(self) -> bool:
        """Whether a waiting row could get a token."""
        return min(self.budget, self.logits, self.prefill, self.places) > 0

    def note_blocks(self, extension: Extension) -> None:
        """Have the runner copy and clear the blocks of an extension."""
        self._fresh.extend(extension.new_block_ids)
        self._copies.extend((source, destination) for _, source, destination in extension.copies)

    def note_replaced(self, row_id: int, extension: Extension) -> None:
        """Have the runner follow copy-on-write in the block table of a row it holds."""
        self._replaced.extend((row_id, index, destination) for index, _, destination in extension.copies)

    def output(self, removed_row_ids: Iterable[int]) -> SchedulerOutput:
        """Return the decisions."""
        return SchedulerOutput(
            rows=tuple(self.rows),
            new_rows=tuple(self.new_rows),
            removed_row_ids=tuple(removed_row_ids),
            replaced_block_ids=tuple(self._replaced),
            block_copies=tuple(self._copies),
            fresh_block_ids=tuple(self._fresh),
            num_scheduled_tokens=self._max_budget - self.budget,
        )
