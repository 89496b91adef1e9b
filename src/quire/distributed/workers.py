"""`WorkerGroup`: the workers of all ranks, seen from their driver: started, spoken to, watched, and ended together.

They compute together, so when one is lost all are: a collective waits for ever for a rank that is gone. A thread that
watches them starts them, too: the kernel ends them when that thread ends, whatever ends it.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from subprocess import TimeoutExpired

from quire.core.errors import WorkerError
from quire.distributed.channel import Channel, ChannelError, FrameReader, pack_frame
from quire.distributed.endpoint import Endpoint

PING_INTERVAL_S = 0.25
# Pings are answered by a thread of their own, so only a stopped process stays silent, or one that imports: that holds
# Python's lock for as long as a cold disk takes to read a gigabyte of libraries. They are counted, not timed: the
# driver may be late itself.
MOST_UNANSWERED, MOST_UNANSWERED_AT_START = 10, 480
EXIT_TIMEOUT_S = 5.0
_VERDICT_TIMEOUT_S = 10.0
_GRACE_S = 0.5  # those who lose their partner in a collective fail within it, and are not to blame
_NUM_LINES = 20


class _Worker:
    """One worker, and what is known of it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.rank, self.process, self.remote = endpoint.rank, endpoint.process, endpoint.remote
        self.commands = Channel(endpoint.commands)
        self.health = endpoint.health
        self.health.setblocking(False)
        self.answers = FrameReader()
        self.inbox: deque[bytes] = deque()
        self.lines: deque[str] = deque(maxlen=_NUM_LINES)
        self.num_unanswered = 0
        self.report = b""
        self._partial = b""

    def take_log(self) -> bool:
        """Pass on what it wrote; return whether there may be more."""
        assert self.process is not None and self.process.stderr is not None, "only such are asked"
        data = os.read(self.process.stderr.fileno(), 1 << 16)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data and self._partial:
            lines, self._partial = [self._partial], b""
        for line in lines:
            text = line.decode(errors="replace")
            self.lines.append(text)
            print(f"[rank {self.rank}] {text}", file=sys.stderr, flush=True)
        return bool(data)

    def exit_code(self) -> int | None:
        """Return how its process ended, None if it lives or is not ours."""
        return None if self.process is None else self.process.poll()

    def bury(self, timeout_s: float) -> None:
        """Wait for its process, kill it if it takes too long, and close everything."""
        if self.remote is not None:
            self.remote.end(timeout_s)
        if self.process is not None:
            try:
                self.process.communicate(timeout=timeout_s)
            except TimeoutExpired:
                self.process.kill()
                self.process.communicate()
        self.health.close()


class WorkerGroup:
    """Owns workers and their channels.

    Args:
        start: Starts them; called in the thread that watches them.
        on_lost: Called once, in that thread, when one is lost.

    Attributes:
        lost: Which is lost and why, once one is.

    Raises:
        WorkerError: They cannot be started.
    """

    def __init__(self, start: Callable[[], Sequence[Endpoint]], on_lost: Callable[[], object] = lambda: None) -> None:
        self.lost: WorkerError | None = None
        self._start = start
        self._on_lost = on_lost
        self._workers: list[_Worker] = []
        self._problem: BaseException | None = None
        self._is_started, self._is_judged, self._is_closing = (threading.Event() for _ in range(3))
        self._most_unanswered = MOST_UNANSWERED_AT_START
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self._thread.start()
        self._is_started.wait()
        if self._problem is not None:
            raise self._problem

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that were started here, in order of ranks."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    @property
    def reports(self) -> list[bytes]:
        """What each rank said of itself when it last answered, empty before."""
        return [worker.report for worker in self._workers]

    def verdict(self, rank: int) -> WorkerError:
        """Wait until it is clear which worker is to blame, and return the error.

        Args:
            rank: One that has closed its channel, or says that it fails: perhaps because of another.
        """
        if not self._is_judged.wait(_VERDICT_TIMEOUT_S) or self.lost is None:
            return WorkerError(f"rank {rank}: expected its worker to listen, got a closed channel.", rank)
        return WorkerError(str(self.lost), self.lost.rank)

    def wait_until_up(self) -> None:
        """Wait until all have answered once: their libraries are read then.

        Raises:
            WorkerError: One is lost.
        """
        while not all(self.reports):
            if self.lost is not None:
                raise self.lost
            time.sleep(PING_INTERVAL_S / 10)

    def watch_closely(self) -> None:
        """Take silence for death from now on: what takes long at a start is over."""
        self._most_unanswered = MOST_UNANSWERED

    def send(self, rank: int, payload: bytes) -> None:
        """Send a frame to a rank.

        Raises:
            WorkerError: A rank is lost, this one or another.
        """
        try:
            self._workers[rank].commands.send(payload)
        except ChannelError:
            raise self.verdict(rank) from None

    def receive(self, rank: int) -> bytes:
        """Wait for a frame of a rank.

        Raises:
            WorkerError: A rank is lost, this one or another.
        """
        worker = self._workers[rank]
        try:
            while not worker.inbox:
                if self.lost is not None:
                    raise self.verdict(rank)
                worker.inbox.extend(worker.commands.receive(is_waiting=True))
        except ChannelError:
            raise self.verdict(rank) from None
        return worker.inbox.popleft()

    def has_frame(self, rank: int) -> bool:
        """Return whether `receive` would return at once."""
        worker = self._workers[rank]
        with suppress(ChannelError):  # the next `receive` tells
            worker.inbox.extend(worker.commands.receive(is_waiting=False))
        return bool(worker.inbox)

    def last_words(self, rank: int) -> bytes | None:
        """Return the last frame of a rank that nobody has taken, None if there is none."""
        self.has_frame(rank)
        inbox = self._workers[rank].inbox
        return inbox[-1] if inbox else None

    def close(self) -> None:
        """Close the channels, which ends the workers after their present step, and wait; kill who takes too long."""
        self._is_closing.set()
        for worker in self._workers:
            worker.commands.close()
        if threading.current_thread() is not self._thread:  # which may be who collects the garbage
            self._thread.join()

    # ------------------------------------------------------------------------------------- in the thread that watches

    def _run(self) -> None:
        try:
            self._workers = [_Worker(endpoint) for endpoint in self._start()]
        except BaseException as error:
            self._problem = error
            return
        finally:
            self._is_started.set()
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.health, selectors.EVENT_READ, (worker, True))
                if worker.process is not None:
                    assert worker.process.stderr is not None
                    selector.register(worker.process.stderr, selectors.EVENT_READ, (worker, False))
            self._watch(selector)
        for worker in self._workers:
            worker.bury(EXIT_TIMEOUT_S)

    def _watch(self, selector: selectors.BaseSelector) -> None:
        """Pass on logs and ask for signs of life until one is lost or all are to end."""
        next_ping_s = 0.0
        while not self._is_closing.is_set():
            for key, _ in selector.select(max(0.0, next_ping_s - time.monotonic())):
                worker, is_health = key.data
                if self._is_closing.is_set():
                    return
                if not is_health:
                    if not worker.take_log():
                        selector.unregister(key.fileobj)
                elif not self._take_answers(worker):
                    self._lose(self._culprit(worker), "its connection was closed")
                    return
            if time.monotonic() >= next_ping_s:
                next_ping_s = time.monotonic() + PING_INTERVAL_S
                for worker in self._workers:
                    if worker.num_unanswered >= self._most_unanswered:
                        self._lose(worker, f"it did not answer for {worker.num_unanswered * PING_INTERVAL_S:g} s")
                        return
                    worker.num_unanswered += 1
                    with suppress(OSError):  # it is read from, too
                        worker.health.send(pack_frame(b"?"))

    def _take_answers(self, worker: _Worker) -> bool:
        """Take in what a worker says of itself; return whether it still can."""
        try:
            data = worker.health.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for payload in worker.answers.feed(data):
            worker.report, worker.num_unanswered = payload, 0
        return bool(data)

    def _culprit(self, first: _Worker) -> _Worker:
        """Return who died first: one that was killed, or else the one that was noticed first."""
        deadline_s = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline_s:
            for worker in self._workers:
                if (worker.exit_code() or 0) < 0:
                    return worker
            time.sleep(0.01)
        return first

    def _lose(self, worker: _Worker, reason: str) -> None:
        """End all, and say who is to blame."""
        code = worker.exit_code()
        for each in self._workers:
            if each.process is not None:
                each.process.kill()
        if worker.remote is not None:
            code, lines = worker.remote.last_words()
            worker.lines.extend(lines)
        if worker.process is not None:
            while worker.take_log():
                pass
        ending = "" if code is None else f", exit code {code}"
        log = "\n".join(worker.lines)
        said = f"Its last lines:\n{log}" if log else "It wrote nothing."
        self.lost = WorkerError(
            f"rank {worker.rank} of {len(self)}: expected its worker to run, got: {reason}{ending}. {said}", worker.rank
        )
        for each in self._workers:
            if each.process is not None:
                each.process.wait()
            each.health.close()
        self._is_judged.set()
        for each in self._workers:
            each.commands.wake()
        for each in self._workers:
            if each.remote is not None:  # its host may be gone, and nobody is to wait for that
                each.remote.end(0)
        self._on_lost()
