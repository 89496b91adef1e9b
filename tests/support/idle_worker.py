"""A worker without a model, for `quire.distributed.program`. It does what it is told in words."""

import socket
import sys
import time

from quire.distributed.channel import Channel, ChannelError
from quire.distributed.lifeline import answer_pings, die_with_parent


def main(commands_fd: str, health_fd: str) -> int:
    die_with_parent()
    answer_pings(Channel(socket.socket(fileno=int(health_fd))), lambda: b"well")
    with Channel(socket.socket(fileno=int(commands_fd))) as channel:
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
