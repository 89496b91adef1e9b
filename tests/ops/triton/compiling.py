"""Compiles kernels for GPUs that are not there: a process of its own, since this one may interpret them.

Run as `python -m tests.ops.triton.compiling` it reads `Compilation`s, one a line, and prints what became of each.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NUM_PROCESSES = 2


@dataclass(frozen=True)
class Compilation:
    """A kernel as a launch of it would compile it.

    Attributes:
        kernel: Module and name, "quire.ops.triton.linear:gathered_kernel".
        signature: Type of each argument that is no constant: "*bf16", "i32", "tensordesc<bf16[128,64]>"; with ":16" if
            the pointer or number is divisible by 16, as the launch would find out.
        constexprs: Values of the rest, None and "tl.bfloat16" among them.
        options: Of the launch: num_warps, num_stages, enable_fp_fusion.
        wants_wgmma: Whether Hopper must compute its products by wgmma.
        most_spilled: Bytes a thread that may be spilled, by capability; none where it is not named.
        capabilities: For which chips; 90 is Hopper, 80 is Ampere.
    """

    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    wants_wgmma: bool = False
    capabilities: tuple[int, ...] = (90, 80)
    most_spilled: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        types = " ".join(t.removesuffix(":16") for t in self.signature.values() if t[0] in "*t")
        sizes = " ".join(str(value) for value in self.constexprs.values() if value is not None)
        return f"{self.kernel.partition(':')[2]} {types} {sizes}"


@dataclass(frozen=True)
class Compiled:
    """What a compilation came to, for one chip.

    Attributes:
        registers: A thread.
        spilled_bytes: A thread's stack and local memory.
        shared_bytes: A program.
        has_wgmma: Whether it multiplies by wgmma.
        is_racing: Whether it goes on while wgmma may still read an operand in registers, which up to ptxas 13.2 may be
            overwritten then (Triton's issue 9433).
        is_in_order: Whether a step of mma.sync takes neighbouring channels, as wgmma does. Where a thread has more than
            32 bits of an operand side by side, a step takes every other two, and adds in another order.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    has_wgmma: bool
    is_racing: bool
    is_in_order: bool


def compile_all(compilations: Sequence[Compilation]) -> dict[tuple[int, int], Compiled]:
    """Compile kernels for their chips, in two processes; Triton's cache keeps them from one run to the next.

    Returns:
        What they came to, by the place of a compilation and the capability.

    Raises:
        RuntimeError: A kernel does not compile; the message has what the compiler says.
    """
    jobs = [(i, capability) for i, each in enumerate(compilations) for capability in each.capabilities]
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        shares = [jobs[start::NUM_PROCESSES] for start in range(NUM_PROCESSES)]
        parts = pool.map(lambda share: _in_process(compilations, share), shares)
        return {key: value for part in parts for key, value in part.items()}


def _in_process(compilations: Sequence[Compilation], share: list[tuple[int, int]]) -> dict[tuple[int, int], Compiled]:
    lines = [repr((vars(compilations[i]), capability)) for i, capability in share]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton.compiling"],
        input="\n".join(lines), capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"A kernel does not compile:\n{done.stderr[-4000:]}")
    return {key: Compiled(**json.loads(line)) for key, line in zip(share, done.stdout.splitlines(), strict=True)}


def _compile(each: Compilation, capability: int) -> Compiled:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = each.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    constants = dict(each.constexprs)
    if "IS_OVERLAPPED" in kernel.arg_names:  # as `launch.overlap` decides
        constants["IS_OVERLAPPED"] = capability >= 90
    given = {**each.signature, **dict.fromkeys(constants, "constexpr")}
    signature = {name: given[name].removesuffix(":16") for name in kernel.arg_names}
    attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if given[name].endswith(":16")}
    constexprs = {
        name: getattr(tl, value[3:]) if isinstance(value, str) and value.startswith("tl.") else value
        for name, value in constants.items()
    }
    source = ASTSource(kernel, signature, constexprs, attrs)
    options = dict(each.options)
    if constexprs.get("IS_OVERLAPPED"):
        options["launch_pdl"] = True
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _usage(made.asm["cubin"])
    ptx, is_in_order = made.asm["ptx"], _is_in_order(made.asm["ttgir"])
    return Compiled(registers, spilled, made.metadata.shared, "wgmma.mma_async" in ptx, _is_racing(ptx), is_in_order)


def _is_racing(ptx: str) -> bool:
    """Return whether there are wgmmas with the first operand in registers, and waits that leave some running."""
    of_registers = re.search(r"wgmma\.mma_async[^{]*\{[^}]*\}, *\{", ptx)
    return bool(of_registers and re.search(r"wgmma\.wait_group\.sync\.aligned [1-9]", ptx))


def _is_in_order(ttgir: str) -> bool:
    """Return whether each operand of mma.sync is laid out in words of 32 bits."""
    products = " ".join(line for line in ttgir.splitlines() if " tt.dot " in line)
    operands = re.findall(r"x[a-z]+(\d+)\w*, #ttg\.dot_op<\{[^}]*kWidth = (\d+)", products)
    return all(int(bits) * int(width) == 32 for bits, width in operands)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers, and bytes of stack and local memory, of the kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def main() -> None:
    """Compile what standard input says, and print a line of JSON for each."""
    for line in sys.stdin.read().splitlines():
        arguments, capability = ast.literal_eval(line)
        print(json.dumps(vars(_compile(Compilation(**arguments), capability))))


if __name__ == "__main__":
    main()
