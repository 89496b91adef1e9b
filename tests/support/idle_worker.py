"""A worker without a model: `python -m tests.support.idle_worker COMMANDS HEALTH`. It does what it is told in words."""

import os
import socket
import sys
import time

from quire.distributed.channel import Channel, ChannelError
from quire.distributed.lifeline import answer_pings, die_with_parent


def main(commands_fd: int, health_fd: int) -> int:
    die_with_parent()
    answer_pings(Channel(socket.socket(fileno=health_fd)), lambda: b"well")
    with Channel(socket.socket(fileno=commands_fd)) as channel:
        try:
            while True:
                for payload in channel.receive(is_waiting=True):
                    word, _, rest = payload.partition(b" ")
                    if word == b"exit":
                        return int(rest)
                    if word == b"say":
                        print(rest.decode(), file=sys.stderr, flush=True)
                    elif word == b"sleep":
                        time.sleep(float(rest))
                    channel.send(payload)
        except ChannelError:
            return 0


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:]))
    sys.stderr.flush()
    os._exit(code)
