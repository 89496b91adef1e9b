"""`Replica`: one of a server's engines, process after process: started, watched, started again when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from quire.core import errors
from quire.core.config import SchedulerConfig
from quire.core.errors import QuireError
from quire.core.log import get_logger
from quire.core.request import CachePicture
from quire.core.server_config import ServerConfig
from quire.server.engine.child import PING_INTERVAL_S, EngineChild
from quire.server.engine.messages import (
    Command,
    Event,
    Failed,
    Look,
    Looked,
    Opened,
    Progress,
    Ready,
    Refused,
    Start,
    StepDone,
)
from quire.server.engine.metrics import EngineMetrics
from quire.server.engine.places import Place
from quire.server.engine.viewers import Viewers
from quire.server.engine_client import EngineDeadError, Readiness

_log = get_logger(__name__)
_SILENCE_S = 1.5
_BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STANDBY_DELAY_S = 1.0  # the first requests come first
_LIVED_S = 2.0  # a process that was ready for less has failed to start

News = Opened | Ready | StepDone | Refused | Progress
"""What an engine process says that concerns others than who sees to the process."""


class Replica:
    """Owns the engine process that serves, and one that stands by. `run` it; `close` ends both.

    Args:
        index: Which of the server's engines it is.
        command: How a process is told to start.
        config: Timeouts, and whether another process is started.
        place: Where its processes run.
        prometheus: Counts of this engine.
        on_news: Called with what its process says.
        on_death: Called when its process has died: all that it held is lost.

    Attributes:
        started: Done when the first process is ready; with an error if there will be none.
        scheduler: What the engine holds; known once a process is ready.
        metrics: Counters and gauges of the process after its last step.
        child_class: What a process is.
    """

    scheduler: SchedulerConfig
    child_class = EngineChild

    def __init__(
        self,
        index: int,
        command: Start,
        config: ServerConfig,
        place: Place,
        prometheus: EngineMetrics,
        on_news: Callable[[Replica, News], None],
        on_death: Callable[[Replica], None],
    ) -> None:
        self.index = index
        self.prometheus = prometheus
        self.metrics: dict[str, float] = {}
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._command = command
        self._config = config
        self._place = place
        self._on_news = on_news
        self._on_death = on_death
        self._child: EngineChild | None = None
        self._successor: EngineChild | None = None
        self._failed: Failed | None = None
        self._ready_time_s: float | None = None
        self._state = "it starts"
        self._viewers = Viewers(lambda: self.send(Look()))
        self._is_closed = False

    # ------------------------------------------------------------------------------------------------- life and death

    async def run(self) -> str:
        """Start process after process, each when the one before is dead; return why there will be no other."""
        num_failures = 0
        while True:
            lived_s = await self._live()
            if not self.started.done():
                self.started.set_exception(self._start_error())
            if self._is_closed or self.started.exception() is not None:
                return self._state
            self.prometheus.note_death()
            if not self._config.restart:
                return self._state
            num_failures = 0 if lived_s > _LIVED_S else num_failures + 1
            delay_s = _BACK_OFF_S[min(num_failures, len(_BACK_OFF_S) - 1)]
            _log.error("engine process %d died: %s; it starts again in %g s", self.index, self._state, delay_s)
            await asyncio.sleep(delay_s)

    async def close(self) -> None:
        """End its processes; return when they are gone."""
        self._is_closed = True
        for child in (self._child, self._successor):
            if child is not None:
                await child.stop()

    def fail(self, error: QuireError) -> None:
        """End the first start with an error."""
        if not self.started.done():
            self.started.set_exception(error)

    async def _live(self) -> float:
        """See one process through from start to death; returns for how many seconds it was ready."""
        self._failed = self._ready_time_s = None
        child, self._successor = self._successor or await self._spawn(), None
        self._child = child
        child.on_silence = self._raise_successor
        child.send(self._command)
        reason = await child.wait_dead()
        self._child = None
        self._state = self._failed.message or self._failed.kind if self._failed else reason
        self.metrics = {}
        self._viewers.show(None)
        self._on_death(self)
        return 0.0 if self._ready_time_s is None else time.monotonic() - self._ready_time_s

    async def _spawn(self) -> EngineChild:
        return await self.child_class.spawn(self._take, self._config.hang_timeout_s, self._place)

    def _raise_successor(self) -> None:
        """Start the process that is to follow: most of a start is reading libraries, which it does meanwhile."""
        if self._config.restart and self._successor is None and not self._is_closed:
            self._raising = asyncio.create_task(self._keep_successor())

    async def _keep_successor(self) -> None:
        child = await self._spawn()
        if self._is_closed or self._successor is not None:
            await child.stop()
        else:
            self._successor = child

    def _start_error(self) -> QuireError:
        """Return why the first start failed, as the error that the process raised, if it is one of ours."""
        kind = getattr(errors, self._failed.kind, None) if self._failed else None
        if self._failed and isinstance(kind, type) and issubclass(kind, QuireError):
            return kind(self._failed.message)
        return EngineDeadError(f"engine process: expected it to start, got: {self._state}.")

    # ------------------------------------------------------------------------------------------ what others ask of it

    @property
    def is_alive(self) -> bool:
        """Whether its process takes requests, be it slowly."""
        return not self._is_closed and self._child is not None and self._child.is_ready

    def readiness(self) -> Readiness:
        """Return whether requests would be served now."""
        child = self._child
        if child is None or not child.is_ready:
            return Readiness(False, f"The engine process is not ready: {self._state}.")
        if (silence_s := child.num_unanswered * PING_INTERVAL_S) > _SILENCE_S:
            return Readiness(False, f"The engine process has not answered for {silence_s:g} s.")
        if child.step_age_s > self._config.ready_timeout_s:
            return Readiness(False, f"The engine has not finished a step for {child.step_age_s:.1f} s.")
        return Readiness(True, "The engine takes requests.")

    def send(self, command: Command) -> None:
        """Send a command to its process; nothing if there is none."""
        if self._child is not None:
            self._child.send(command)

    async def picture(self) -> CachePicture:
        """Return what its KV cache holds between two steps; all who look meanwhile get the same one.

        Raises:
            EngineDeadError: There is no engine process, or it dies before it answers.
        """
        if not self.is_alive:
            raise EngineDeadError(f"The engine shows nothing: {self.readiness().reason}")
        return await self._viewers.look()

    # ------------------------------------------------------------------------------------------ what its process says

    def _take(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._failed = event
        elif isinstance(event, Looked):
            self._viewers.show(event.picture)
        elif isinstance(event, Ready):
            self._take_ready(event)
        else:
            if isinstance(event, StepDone):
                self.metrics = event.metrics
                self.prometheus.note_step(event.metrics)
            elif isinstance(event, Progress):
                self._state = f"{event.title}, {event.done} of {event.total}"
            self._on_news(self, event)

    def _take_ready(self, event: Ready) -> None:
        if self.started.done() and self.started.exception() is not None:
            return
        assert self._child is not None
        self.scheduler = event.scheduler
        self._child.is_ready = True
        self._ready_time_s = time.monotonic()
        if self._config.standby:
            asyncio.get_running_loop().call_later(_STANDBY_DELAY_S, self._raise_successor)
        self._on_news(self, event)
        if not self.started.done():
            self.started.set_result(None)
