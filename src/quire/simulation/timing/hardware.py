"""Named devices and links: the numbers of their makers, and what share of them Quire has reached."""

from __future__ import annotations

from dataclasses import dataclass

from quire.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What is reached of a maker's numbers, and what steps cost beside them.

    Attributes:
        products: Of `flops`, by products of many rows.
        reading: Of `read_bytes_per_s`, by whatever streams through memory.
        attention: Of `flops`, by attention of prompts.
        cache_reading: Of `read_bytes_per_s`, by attention of rows with one token.
        narrow_cache: Of what attention reaches, over a cache of eight bits.
        call_s: Seconds of each call beside its work: its start, and its end when few units are busy.
        step_s: Seconds of the host for a step.
        row_s: Seconds of the host for each row of a step.
        request_s: Seconds of the host for each row that is new.
    """

    products: float
    reading: float
    attention: float
    cache_reading: float
    narrow_cache: float
    call_s: float
    step_s: float
    row_s: float
    request_s: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device.

    Attributes:
        name: For example "H100".
        kind: Which tactics run there: "cpu" or "cuda".
        memory_bytes: Of device memory.
        read_bytes_per_s: Peak of its memory.
        flops: Peak of dense products by dtype, operations per second. A dtype without an entry has that of "bfloat16".
        link: Name of the link to its neighbours.
        efficiency: What is reached.
        source: Where the numbers are from.
    """

    name: str
    kind: str
    memory_bytes: int
    read_bytes_per_s: float
    flops: dict[str, float]
    link: str
    efficiency: Efficiency
    source: str

    def peak(self, arithmetic: str) -> float:
        """Return the peak of products in a dtype."""
        return self.flops.get(arithmetic, self.flops["bfloat16"])


@dataclass(frozen=True, slots=True)
class Link:
    """What devices exchange tensors through.

    Attributes:
        name: For example "nvlink4".
        bytes_per_s: Of a device, in each direction.
        latency_s: From the call of a collective until its first bytes arrive. Makers do not say; see docs/simulate.md.
        source: Where the bandwidth is from.
    """

    name: str
    bytes_per_s: float
    latency_s: float
    source: str


HOPPER = Efficiency(
    products=0.66,
    reading=0.85,
    attention=0.36,
    cache_reading=0.58,
    narrow_cache=0.8,
    call_s=2e-6,
    step_s=3e-4,
    row_s=3e-5,
    request_s=1e-4,
)
"""What makes steps of Llama-3.1-8B take what they took on an H200; docs/simulate.md has the errors that are left."""

_NVIDIA = "https://www.nvidia.com/en-us/data-center"


def _gpu(
    name: str, gigabytes: int, tb_per_s: float, bf16: float, eight: float, link: str, source: str, *, has_fp8: bool
) -> Hardware:
    """Return a GPU from its data sheet: GB of memory, TB/s, dense TFLOP/s of 16 bits and of 8."""
    flops = {"bfloat16": bf16 * 1e12, "float16": bf16 * 1e12, "float32": bf16 / 2 * 1e12, "int8": eight * 1e12}
    if has_fp8:
        flops["float8_e4m3fn"] = eight * 1e12
    return Hardware(name, "cuda", gigabytes * 10**9, tb_per_s * 1e12, flops, link, HOPPER, source)


HARDWARE: dict[str, Hardware] = {
    device.name: device
    for device in (
        _gpu("L4", 24, 0.3, 121, 242, "pcie4", f"{_NVIDIA}/l4/ (halved: the sheet counts sparsity)", has_fp8=True),
        _gpu("L40S", 48, 0.864, 362, 733, "pcie4", f"{_NVIDIA}/l40s/", has_fp8=True),
        _gpu("A100", 80, 2.039, 312, 624, "nvlink3", f"{_NVIDIA}/a100/ (80 GB SXM)", has_fp8=False),
        _gpu("H100", 80, 3.35, 989, 1979, "nvlink4", f"{_NVIDIA}/h100/ (SXM; halved)", has_fp8=True),
        _gpu("H200", 141, 4.8, 989, 1979, "nvlink4", f"{_NVIDIA}/h200/ (SXM; halved)", has_fp8=True),
        _gpu("B200", 180, 8.0, 2250, 4500, "nvlink5", f"{_NVIDIA}/hgx/ (HGX B200, an eighth; halved)", has_fp8=True),
    )
}
"""Dense rates: makers print twice as much, for matrices of which half is zero. float32 products run as TF32."""

LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link("nvlink3", 300e9, 10e-6, f"{_NVIDIA}/nvlink/: 600 GB/s, both directions"),
        Link("nvlink4", 450e9, 10e-6, f"{_NVIDIA}/nvlink/: 900 GB/s, both directions"),
        Link("nvlink5", 900e9, 10e-6, f"{_NVIDIA}/nvlink/: 1,800 GB/s, both directions"),
        Link("pcie4", 32e9, 20e-6, "PCI-SIG, PCIe 4.0 x16"),
        Link("pcie5", 64e9, 20e-6, "PCI-SIG, PCIe 5.0 x16"),
        Link("infiniband-ndr", 50e9, 25e-6, "InfiniBand NDR, one port of 400 Gbit/s for each device"),
        Link("ethernet-100g", 12.5e9, 60e-6, "IEEE 802.3bm, 100 Gbit/s for each device"),
        Link("shared-memory", 5e9, 50e-6, "processes of one host that exchange through memory (gloo); an estimate"),
    )
}


def hardware_named(name: str) -> Hardware:
    """Return a device of the table.

    Raises:
        ConfigError: There is none of that name.
    """
    found = HARDWARE.get(name.upper())
    if found is None:
        known = ", ".join(HARDWARE)
        raise ConfigError(
            f"hardware: expected one of {known}, or here, got {name!r}.{did_you_mean(name.upper(), HARDWARE)}"
        )
    return found


def link_named(name: str) -> Link:
    """Return a link of the table.

    Raises:
        ConfigError: There is none of that name.
    """
    found = LINKS.get(name.lower())
    if found is None:
        raise ConfigError(f"link: expected one of {', '.join(LINKS)}, got {name!r}.{did_you_mean(name.lower(), LINKS)}")
    return found
