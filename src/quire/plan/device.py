"""`Device`: what a timing holds for, a machine's processor and the libraries that ran on it."""

from __future__ import annotations

import platform
import re

import msgspec
import torch

from quire import __version__

# As /proc/cpuinfo spells them; the ones that decide how fast a GEMM can be.
_ISA = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that changes how fast a tactic is, apart from the tactic.

    Attributes:
        kind: "cpu".
        name: The processor's model name.
        features: Instruction sets that matter.
        threads: How many an op may use.
        torch: Version of torch.
        quire: Version of Quire.
    """

    kind: str
    name: str
    features: tuple[str, ...]
    threads: int
    torch: str
    quire: str

    @property
    def file_name(self) -> str:
        """Name of the device's file beside a plan, for example "cpu-amd-epyc-7b13-2-threads.json"."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.name}".lower()).strip("-")
        return f"{words}-{self.threads}-threads.json"

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} threads, torch {self.torch}, quire {self.quire}"

    def differences(self, other: Device) -> str:
        """Return in words in what another device differs from this one; empty if in nothing."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return ", ".join(f"{name} {theirs[name]} (here {mine[name]})" for name in mine if mine[name] != theirs[name])


def this_device(kind: str = "cpu") -> Device:
    """Return the device of a kind that this process computes on."""
    return Device(kind, processor_name(), tuple(isa_flags()), num_threads(), str(torch.__version__), __version__)


def processor_name() -> str:
    """Return the processor's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def isa_flags() -> list[str]:
    """Return which instruction sets that matter the processor has."""
    flags = set(_cpuinfo().get("flags", "").split())
    return [name for name in _ISA if name in flags]


def num_threads() -> int:
    """Return how many threads an op may use."""
    return torch.get_num_threads()


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; empty elsewhere than on Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().partition("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
