"""`Samples`: the unfinished samples of one request, and who of them leads."""

from __future__ import annotations

from dataclasses import replace

from quire.core.config import SchedulerConfig
from quire.core.request import Request
from quire.scheduler.row import Row, RowQueue, row_of


class Samples:
    """Rows by sample index.

    The prompt is computed once. Until that is done one row, the leader, is queued and the others are held here; then
    all of them become forks of the leader. If the leader ends before, the next one leads.

    Attributes:
        rows: Unfinished rows by index.
        held: Those that wait for the leader's prompt.
    """

    __slots__ = ("held", "rows")

    def __init__(self, request: Request, first_row_id: int, config: SchedulerConfig) -> None:
        self.rows = {i: row_of(request, i, first_row_id + i, config) for i in range(request.params.n)}
        self.held = RowQueue()
        for row in self.rows.values():
            row.move_to(self.held)

    def next_leader(self) -> Row | None:
        """Return the first held row if nobody leads, owing the prompt logprobs from now on."""
        if not self.rows or len(self.held) < len(self.rows):
            return None
        leader = self.held.rows[0]
        num_logprobs = leader.request.params.prompt_logprobs
        if leader.params.prompt_logprobs != num_logprobs:
            leader.params = replace(leader.params, prompt_logprobs=num_logprobs)
        return leader
