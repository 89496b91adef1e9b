"""What ties a child process to its parent: it answers pings, and it does not outlive the one who asks."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from quire.distributed.channel import Channel, ChannelError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even within a step or while stopped.

    The terminal's ^C is ignored: the parent decides, and closes the socket.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def answer_pings(channel: Channel, answer: Callable[[], bytes], on_end: Callable[[], object] = lambda: None) -> None:
    """Answer each frame with one, in a thread of its own, until the other end is gone.

    Args:
        channel: Closed then.
        answer: Returns what to say; called in that thread.
        on_end: Called then, in that thread.
    """

    def serve() -> None:
        with channel, suppress(ChannelError):  # until the parent is gone
            while True:
                for _ in channel.receive(is_waiting=True):
                    channel.send(answer())
        on_end()

    threading.Thread(target=serve, name="pings", daemon=True).start()
