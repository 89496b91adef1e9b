"""`WaitingRoom`: how much may wait for the engine; who comes when it is full is told when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from quire.core.config import SchedulerConfig
from quire.core.log import get_logger
from quire.core.server_config import ServerConfig
from quire.server.engine_client import OverloadedError

_log = get_logger(__name__)
_LEAST_WAITING = 16
_NUM_KV_CACHES = 4  # waiting tokens by default, in KV caches: what is served while a client still has patience
_RATE_WINDOW_S = 30.0
_RETRY_RANGE_S = (1.0, 60.0)


class WaitingRoom:
    """Counts what was taken in: all that is unfinished in sequences, what has no seat yet in tokens as well.

    One room is before all engines of a server; which of them a request goes to is decided behind it.

    Args:
        config: Its limits; None is filled in.
        engines: What each engine holds.
        clock: Monotonic seconds.

    Attributes:
        max_num_seqs: Most unfinished sequences: those with a seat and those that may wait.
        max_waiting_tokens: Most tokens without a seat, prompt plus n times max_tokens.
    """

    max_num_seqs: int
    max_waiting_tokens: int

    def __init__(
        self, config: ServerConfig, engines: Sequence[SchedulerConfig], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._clock = clock
        self._num_seqs: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._ends: deque[tuple[float, int]] = deque()
        self._num_unfinished = self._num_waiting_tokens = self._num_ended = 0
        self.resize(engines)

    def resize(self, engines: Sequence[SchedulerConfig]) -> None:
        """Set the bounds by what the engines that live hold; without one they stay."""
        if not engines:
            return
        seats = sum(engine.max_num_seqs for engine in engines)
        waiting = self._config.max_num_waiting
        if waiting is None:
            waiting = max(seats, _LEAST_WAITING)
        in_kv_caches = sum((engine.num_blocks - 1) * engine.block_size for engine in engines)
        longest = max(engine.max_model_len for engine in engines)
        self.max_num_seqs = seats + waiting
        self.max_waiting_tokens = self._config.max_waiting_tokens or max(
            _NUM_KV_CACHES * in_kv_caches, _LEAST_WAITING * longest
        )
        _log.info("at most %d sequences and %d tokens wait for a seat", waiting, self.max_waiting_tokens)

    def check(self) -> None:
        """Find out whether there is room for anybody, which costs less than to read what is asked.

        Raises:
            OverloadedError: Whatever is asked would be refused.
        """
        if self._num_unfinished >= self.max_num_seqs:
            raise self._refusal(f"{self._num_unfinished} sequences, of at most {self.max_num_seqs}", 1)
        if self._num_waiting_tokens >= self.max_waiting_tokens:
            raise self._refusal(f"{self._num_waiting_tokens} tokens, of at most {self.max_waiting_tokens}", 1)

    def enter(self, request_id: str, num_seqs: int, num_tokens: int) -> None:
        """Take a request in.

        Args:
            request_id: Its key.
            num_seqs: Its `n`.
            num_tokens: Prompt plus n times max_tokens.

        Raises:
            OverloadedError: There is no room; nothing has changed. A request larger than all the room may wait alone.
        """
        tokens_after = self._num_waiting_tokens + num_tokens
        if self._num_unfinished and self._num_unfinished + num_seqs > self.max_num_seqs:
            raise self._refusal(f"{self._num_unfinished} sequences, of at most {self.max_num_seqs}", num_seqs)
        if self._num_waiting_tokens and tokens_after > self.max_waiting_tokens:
            raise self._refusal(f"{self._num_waiting_tokens} tokens, of at most {self.max_waiting_tokens}", num_seqs)
        self._num_seqs[request_id] = num_seqs
        self._tokens[request_id] = num_tokens
        self._num_unfinished += num_seqs
        self._num_waiting_tokens = tokens_after

    def seat(self, request_id: str) -> None:
        """Note that a request runs, if it is known."""
        self._num_waiting_tokens -= self._tokens.pop(request_id, 0)

    def leave(self, request_id: str) -> None:
        """Note that a request has ended, however."""
        self.seat(request_id)
        num_seqs = self._num_seqs.pop(request_id)
        self._num_unfinished -= num_seqs
        self._ends.append((self._clock(), num_seqs))
        self._num_ended += num_seqs
        self._forget_old_ends()

    def _forget_old_ends(self) -> None:
        oldest_s = self._clock() - _RATE_WINDOW_S
        while self._ends and self._ends[0][0] < oldest_s:
            self._num_ended -= self._ends.popleft()[1]

    def _refusal(self, load: str, num_seqs: int) -> OverloadedError:
        """Return the error, with the time in which what is before this request will have ended at the present rate."""
        self._forget_old_ends()
        seconds = max(self._clock() - self._ends[0][0], 1e-3) if self._ends else _RATE_WINDOW_S
        rate = self._num_ended / seconds
        low, high = _RETRY_RANGE_S
        retry_after_s = min(high, max(low, self._num_unfinished / rate if rate else low))
        return OverloadedError(
            f"The engine is busy: {load} are taken in already, and this request has {num_seqs} more sequences. "
            f"Come back in {retry_after_s:.0f} s.",
            retry_after_s,
        )
