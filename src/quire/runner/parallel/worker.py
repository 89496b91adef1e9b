"""The program of a worker, for `quire.distributed.program`.

It opens an engine directory, cuts out the part of its rank, loads that as any runner would, and runs the steps that its
driver sends while that lives. What it computes with others goes over the process group, not over the driver.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TypeVar

import msgspec
import torch

from quire.core import env, log
from quire.core.errors import QuireError
from quire.core.log import get_logger
from quire.core.mapping import Mapping
from quire.distributed.channel import Channel, ChannelError
from quire.distributed.endpoint import knock
from quire.distributed.lifeline import answer_pings, die_with_parent
from quire.distributed.tensors.communicator import use
from quire.distributed.tensors.process_group import joined
from quire.distributed.tensors.torch_group import TorchCommunicator, Traffic
from quire.plan.cores import use_cores
from quire.plan.device import torch_device
from quire.plan.memory import mib
from quire.plan.plan import Plan
from quire.runner.device import available_memory_bytes
from quire.runner.model_runner import LocalRunner, Pending, make_runner
from quire.runner.outputs import FailedStep
from quire.runner.parallel.layout import LOOPBACK
from quire.runner.parallel.messages import (
    Answer,
    Command,
    Failed,
    Held,
    Load,
    Open,
    Opened,
    Progress,
    Ready,
    Result,
    Sleep,
    Step,
    Vocabulary,
    WakeUp,
    Work,
    encode,
)
from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary
from quire.sharding.shard import shard

_log = get_logger(__name__)
_POLL_S = 50e-6  # a step of a GPU takes milliseconds
_LEAVING_S = 2.0
T = TypeVar("T")


class Worker:
    """Serves one driver.

    Args:
        channel: To it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._commands = msgspec.msgpack.Decoder(Command)
        self._inbox: deque[Command] = deque()
        self._pending: deque[Pending] = deque()
        self._num_taken = self._num_steps = 0
        self._busy_s = 0.0
        self._traffic = Traffic()
        self._vocabulary: TokenVocabulary | None = None
        self._runner: LocalRunner
        self._is_reporting = self._is_sampling = False

    def work(self) -> bytes:
        """Return what this rank has done so far, as `Work`. Called from another thread."""
        calls, sent_bytes = sum(self._traffic.calls.values()), sum(self._traffic.sent_bytes.values())
        return encode(Work(self._num_steps, self._busy_s, calls, sent_bytes))

    def run(self) -> None:
        """Open, load, then run steps until the driver is gone.

        Raises:
            ChannelError: It is.
        """
        asked = self._next(Open)
        sizes = {"tp_size": asked.tp_size, "pp_size": asked.pp_size}
        world_size = asked.tp_size * asked.pp_size
        mapping = Mapping(world_size, asked.rank, asked.num_local, **sizes, pp_partition=asked.pp_partition)
        device = _take_device(asked)
        if asked.store.startswith(LOOPBACK):
            env.stay_on_loopback()
        plan = shard(Plan.load(asked.engine), mapping, device=asked.device, deterministic=asked.deterministic)
        with joined(asked.store, mapping.rank, mapping.world_size, device):
            communicator = TorchCommunicator.connect(mapping, device.type, asked.store)
            self._traffic = communicator.traffic
            with use(communicator):
                share = asked.num_local if device.type == "cpu" else 1
                self._send(Opened(available_memory_bytes(device.type) // share))
                self._load(plan, asked, self._next(Load))
                try:
                    while True:
                        self._turn()
                finally:
                    self._runner.close()  # before the group is left: captured graphs hold on to it

    def _load(self, plan: Plan, opened: Open, asked: Load) -> None:
        device = opened.device
        self._is_reporting, self._is_sampling = asked.is_reporting, "logits" in plan.network.outputs
        self._runner = make_runner(
            plan,
            asked.scheduler,
            device,
            deterministic=opened.deterministic,
            enforce_eager=asked.enforce_eager,
            on_progress=(lambda done: self._send(Progress(done))) if opened.rank == 0 else None,
            grammars=GrammarCompiler(self._known_vocabulary),
        )
        num_bytes, where = self._runner.num_bytes(), f"{device}, {torch.get_num_threads()} threads"
        _log.info("%d layers, %s of weights and KV cache, on %s", plan.spec.num_layers, mib(num_bytes), where)
        self._send(Ready(num_bytes, self._runner.max_ahead, self._runner.can_pool))

    def _known_vocabulary(self) -> TokenVocabulary:
        assert self._vocabulary is not None, "the driver sends the vocabulary before the first row that needs it"
        return self._vocabulary

    def _next(self, kind: type[T]) -> T:
        """Wait for a command of a kind, the only one that may come now."""
        self._receive(is_waiting=True)
        command = self._inbox.popleft()
        if not isinstance(command, kind):
            raise ChannelError(f"channel: expected {kind.__name__}, got {type(command).__name__}.")
        return command

    def _receive(self, *, is_waiting: bool) -> None:
        while True:
            self._inbox.extend(map(self._commands.decode, self._channel.receive(is_waiting=is_waiting)))
            if self._inbox or not is_waiting:
                return

    def _send(self, answer: Answer) -> None:
        self._channel.send(encode(answer))

    def _turn(self) -> None:
        """Obey what has arrived; sleep if there is nothing, and no result is due."""
        is_due = self._is_reporting and bool(self._pending)
        self._receive(is_waiting=not is_due)
        if is_due and not self._inbox and not self._pending[0].is_ready():
            time.sleep(_POLL_S)
        self._report()
        while self._inbox:
            self._obey(self._inbox.popleft())
            self._report()

    def _obey(self, command: Command) -> None:
        if isinstance(command, Step):
            self._run_step(command)
        elif isinstance(command, Vocabulary):
            self._vocabulary = TokenVocabulary(command.tokens, command.special_ids, command.eos_token_ids)
        elif isinstance(command, Sleep):
            self._runner.sleep(command.level)
            self._send(Held(self._runner.num_bytes()))
        elif isinstance(command, WakeUp):
            self._runner.wake_up()
            self._send(Held(self._runner.num_bytes()))
        else:
            raise ChannelError(f"channel: expected no second {type(command).__name__}.")

    def _run_step(self, asked: Step) -> None:
        """Take results in the order in which the driver has, so that all ranks know the same, and start the step."""
        while self._num_taken < asked.num_taken or len(self._pending) > self._runner.max_ahead:
            self._take()
        began_s, waited_s = time.perf_counter(), self._traffic.waited_s
        if not self._is_sampling:
            self._runner.learn(asked.sampled)
        pending = self._runner.execute(asked.step)
        if isinstance(pending, FailedStep):  # the other ranks wait for what will not come
            raise pending.error
        self._pending.append(pending)
        self._busy_s += time.perf_counter() - began_s - (self._traffic.waited_s - waited_s)
        self._num_steps += 1

    def _report(self) -> None:
        """Send the results that are there, in order."""
        while self._is_reporting and self._pending and self._pending[0].is_ready():
            self._take()

    def _take(self) -> None:
        """Wait for the oldest result, and send it if it is asked for."""
        output = self._pending.popleft().result()
        self._num_taken += 1
        if self._is_reporting:
            self._send(Result(output))


def _take_device(asked: Open) -> torch.device:
    """Return the device of this rank; processors are shared with the other ranks on this machine."""
    device = torch_device(asked.device)
    if device.type == "cuda":
        torch.cuda.set_device(asked.local_rank)
        return torch.device("cuda", asked.local_rank)
    use_cores(asked.num_local)
    return device


def serve(channel: Channel, health: Channel) -> int:
    """Serve a driver until it is gone; returns the exit code: 0 then, 1 when something failed.

    Args:
        channel: For commands; closed at the end.
        health: For pings.
    """
    with channel:
        worker = Worker(channel)
        answer_pings(health, worker.work, _leave)
        try:
            worker.run()
        except ChannelError as error:
            _log.debug("the worker ends: %s", error)
        except Exception as error:
            _log.error("the worker fails: %s", error, exc_info=not isinstance(error, QuireError))
            with suppress(ChannelError):  # nobody is left to be told
                channel.send(encode(Failed(type(error).__name__, str(error))))
            return 1
        return 0


def _leave() -> None:
    """End a process whose driver is gone, even if it waits for a rank that is gone, too."""
    time.sleep(_LEAVING_S)
    os._exit(1)


def main(*arguments: str) -> int:
    """Run a worker for sockets that are open, or for `join ADDRESS RANK`, the secret on standard input."""
    log.configure()
    die_with_parent()
    if arguments[0] != "join":
        commands, health = (Channel(socket.socket(fileno=int(fd))) for fd in arguments)
        return serve(commands, health)
    return serve(*knock(arguments[1], sys.stdin.readline().strip(), int(arguments[2])))
