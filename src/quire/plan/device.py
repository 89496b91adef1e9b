"""`Device`: what a timing holds for, a machine's processor and the libraries that ran on it."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version

import msgspec
import torch

from quire import __version__
from quire.core.errors import ConfigError

# As /proc/cpuinfo spells them; the ones that decide how fast a GEMM can be.
_ISA = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that changes how fast a tactic is, apart from the tactic.

    Attributes:
        kind: "cpu" or "cuda".
        name: The processor's model name.
        features: Instruction sets that matter; of a GPU its architecture, and what kernels are compiled by.
        threads: How many an op may use; of a GPU its multiprocessors.
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
        return f"{words}-{self.threads}-threads.json" if self.kind == "cpu" else f"{words}.json"

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.kind == "cpu" else ""
        return f"{self.name}{threads}, torch {self.torch}, quire {self.quire}"

    def differences(self, other: Device) -> str:
        """Return in words in what another device differs from this one; empty if in nothing."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return ", ".join(f"{name} {theirs[name]} (here {mine[name]})" for name in mine if mine[name] != theirs[name])


def device_kind(wanted: str) -> str:
    """Return the kind of device that a setting means: "cpu" or "cuda".

    Args:
        wanted: One of them, or "auto" for a GPU if there is one.

    Raises:
        ConfigError: A GPU is asked for, and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            f"device: expected a GPU that torch {torch.__version__} can use for 'cuda', got none. Install a CUDA build "
            "of torch and a driver, or use device='cpu'."
        )
    return ("cuda" if has_gpu else "cpu") if wanted == "auto" else wanted


def num_devices(kind: str) -> int | None:
    """Return how many devices of a kind this machine has; None for processors, which any number of ranks may share."""
    return torch.cuda.device_count() if torch_device(kind).type == "cuda" else None


def torch_device(kind: str) -> torch.device:
    """Return where the tensors of a device kind lie; without a GPU, kernels for one are interpreted on the CPU."""
    return torch.device("cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu")


def this_device(kind: str = "cpu") -> Device:
    """Return the device of a kind that this process computes on."""
    if kind == "cuda":
        return _gpu()
    return Device(kind, processor_name(), tuple(isa_flags()), num_threads(), str(torch.__version__), __version__)


def _gpu() -> Device:
    if not torch.cuda.is_available():
        return Device("cuda", "interpreter", (), num_threads(), str(torch.__version__), __version__)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        compiler = f"triton {version('triton')}"
    except PackageNotFoundError:
        compiler = "no triton"
    features = (f"sm_{properties.major}{properties.minor}", f"cuda {torch.version.cuda}", compiler)
    units = properties.multi_processor_count
    return Device("cuda", properties.name, features, units, str(torch.__version__), __version__)


def processor_name() -> str:
    """Return the processor's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def driver_version() -> str:
    """Return the version of NVIDIA's driver, "unknown" where the system does not say."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", file.read())
    except OSError:
        found = None
    return found[1] if found else "unknown"


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
