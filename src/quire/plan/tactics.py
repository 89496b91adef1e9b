"""Tactics that were measured for a plan, a file a device: `tactics/<device>.json` beside it, or nothing.

A record is looked up by everything that changes which tactic is fastest: the call's op, shapes, dtypes and constants,
the tactics it was chosen among, and the device. What is missing or does not fit means the default, never an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import msgspec
from torch import fx

from quire.core.errors import TacticError
from quire.graph.network import Network
from quire.graph.nodes import op_of, spec_argument
from quire.ops.op import REFERENCE, Tactic
from quire.ops.tactics import tactics_for
from quire.plan.device import Device
from quire.plan.folding import constant_nodes
from quire.plan.storage.hashed_file import read_hashed, write_hashed

FORMAT = 1
DIRECTORY = "tactics"


class TacticRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tactic of a call won.

    Attributes:
        call: What `describe` says of the call.
        chosen: Name of the fastest tactic of those that keep a row's bits.
        times_us: Microseconds of each tactic, one for each of the file's numbers of rows.
    """

    call: str
    chosen: str
    times_us: dict[str, tuple[float, ...]]


class DeviceTactics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All records of one device.

    Attributes:
        device: Where they were measured.
        rows: Numbers of rows that were timed; one tactic serves all of them, since a row's bits must not depend on how
            many there are.
        records: In order of first use.
    """

    device: Device
    rows: tuple[int, ...]
    records: tuple[TacticRecord, ...]


def describe(node: fx.Node) -> str:
    """Return a call as text: its op, and shape and dtype, or value, of every argument."""
    arguments = (f"{name}={_show(spec_argument(value))}" for name, value in node.kwargs.items())
    return f"{op_of(node).name}({', '.join(arguments)})"


def _show(value: object) -> str:
    return f"[{', '.join(map(_show, value))}]" if isinstance(value, (list, tuple)) else str(value)


def candidates(
    node: fx.Node, constants: Collection[fx.Node], device: str, *, deterministic: bool = True
) -> list[Tactic]:
    """Return the tactics that may run a call on a device kind, the default first.

    Args:
        node: A call.
        constants: The constant nodes of its network, which is what a tactic may pack.
        device: Kind of device.
        deterministic: Leave out those that do not keep a row's bits, unless there are no others.

    Raises:
        TacticError: There is none.
    """
    arguments = tuple(
        (name, type(value), _fixed(spec_argument(value)), _is_constant(value, constants))
        for name, value in node.kwargs.items()
    )
    valid = _valid(tuple(tactics_for(op_of(node).name, device)), arguments)
    if not valid:
        raise TacticError(f"{op_of(node).name}: expected a tactic for {describe(node)} on {device}, got none.")
    return ([tactic for tactic in valid if tactic.keeps_bits] if deterministic else []) or list(valid)


@lru_cache(maxsize=1024)  # layers are alike, and each load asks four times: the memory plan and the executor
def _valid(tactics: tuple[Tactic, ...], arguments: tuple[tuple[str, type, Any, bool], ...]) -> tuple[Tactic, ...]:
    """Return the tactics that bear arguments, of each its name, type, spec or value, and whether it is constant."""
    specs = {name: spec for name, _, spec, _ in arguments}
    constant = {name for name, _, _, is_constant in arguments if is_constant}
    return tuple(t for t in tactics if constant.issuperset(t.pack_args) and t.is_valid(**specs))


def _fixed(value: object) -> object:
    """Return an argument as something that can be looked up."""
    return tuple(map(_fixed, value)) if isinstance(value, (list, tuple)) else value


def contenders(node: fx.Node, constants: Collection[fx.Node], device: str) -> list[Tactic]:
    """Return the tactics of a call that are timed, the default first: those that do not keep bits among them, but a
    reference that does not only where there is no other.

    Raises:
        TacticError: There is none.
    """
    valid = candidates(node, constants, device) + candidates(node, constants, device, deterministic=False)
    by_name = {tactic.name: tactic for tactic in valid}
    found = [tactic for tactic in by_name.values() if tactic.keeps_bits or tactic.name != REFERENCE]
    return found or list(by_name.values())


def fastest(times_us: Mapping[str, tuple[float, ...]]) -> str:
    """Return the name of the tactic with the smallest geometric mean of its times."""
    return min(times_us, key=lambda name: prod(times_us[name]))


def choose(
    node: fx.Node, constants: Collection[fx.Node], device: str, chosen: Mapping[str, str] | None = None
) -> Tactic:
    """Return the tactic that runs a call: the one that was chosen, or else the default.

    Args:
        node: A call.
        constants: The constant nodes of its network.
        device: Kind of device.
        chosen: What `choices` found.

    Raises:
        TacticError: There is none.
    """
    name = chosen.get(describe(node)) if chosen else None
    if name is not None:
        for tactic in candidates(node, constants, device, deterministic=False):
            if tactic.name == name:
                return tactic
    return candidates(node, constants, device)[0]


def _is_constant(value: object, constants: Collection[fx.Node]) -> bool:
    return not isinstance(value, fx.Node) or value in constants


def prepared_key(node: fx.Node, tactic: Tactic) -> object:
    """Return what calls share that share what is prepared: what their tactic reads, and the specs of the rest."""
    reads = tuple(node.kwargs[name] for name in tactic.prepare_reads)
    rest = tuple(_show(spec_argument(v)) for name, v in node.kwargs.items() if name not in tactic.prepare_reads)
    return tactic.op, tactic.name, reads, rest


def choices(
    measured: Sequence[DeviceTactics], device: Device, network: Network, *, deterministic: bool = True
) -> Mapping[str, str]:
    """Return the tactic to use by `describe` of each call, as far as it is not the default.

    Args:
        measured: All that a plan has; the fastest on this device is used.
        device: What it is to run on.
        network: What is to run.
        deterministic: Use only what keeps a row's bits. Without it a tactic that does not is the default where the
            table of the device names it first.
    """
    chosen = dict(_match(measured, device, network, deterministic)[0])
    if not deterministic:
        constants = constant_nodes(network)
        for node in network.calls():
            if node not in constants:
                chosen.setdefault(describe(node), candidates(node, constants, device.kind, deterministic=False)[0].name)
    return chosen


def unusable(
    measured: Sequence[DeviceTactics], device: Device, network: Network, *, deterministic: bool = True
) -> list[str]:
    """Return in words how many records are left out, and why: from another device, or chosen among other tactics.

    Args:
        measured: All that a plan has.
        device: What it is to run on.
        network: What is to run.
        deterministic: As for `choices`.
    """
    said = [
        f"{len(other.records)} records unused, measured on another device: {device.differences(other.device)}; tune "
        "the engine here (`quire build ENGINE --tune`) for faster ones"
        for other in measured
        if other.device != device
    ]
    _, stale = _match(measured, device, network, deterministic)
    if stale:
        said.append(f"{stale} records unused, chosen among other tactics than there are now; tune the engine again")
    return said


def _match(
    measured: Sequence[DeviceTactics], device: Device, network: Network, deterministic: bool
) -> tuple[Mapping[str, str], int]:
    """Return the tactics to use, and how many records of this device were chosen among others than there are."""
    records = {record.call: record for tactics in measured if tactics.device == device for record in tactics.records}
    chosen: dict[str, str] = {}
    stale, constants = 0, constant_nodes(network)
    if not records:
        return chosen, stale
    for call, node in {describe(node): node for node in network.calls() if node not in constants}.items():
        record = records.get(call)
        if record is None:
            continue
        timed = {tactic.name: tactic for tactic in contenders(node, constants, device.kind)}
        name = record.chosen if deterministic else fastest(record.times_us)
        is_current = timed.keys() == record.times_us.keys() and name in timed
        if is_current and (timed[name].keeps_bits or not deterministic):
            chosen[call] = name
        else:
            stale += 1
    return chosen, stale


def write_tactics(root: Path, tactics: DeviceTactics) -> Path:
    """Write the file of a device into an engine directory, in place of an earlier one; returns its path."""
    path = root / DIRECTORY / tactics.device.file_name
    write_hashed(path, tactics, FORMAT)
    return path


def read_tactics(root: Path) -> tuple[DeviceTactics, ...]:
    """Read the files of all devices in an engine directory.

    Raises:
        PlanError: One is damaged, or of another format version.
    """
    hint = "Delete it, or measure again with `quire build ENGINE --tune`."
    paths = sorted((root / DIRECTORY).glob("*.json"))
    return tuple(read_hashed(path, DeviceTactics, FORMAT, "measured tactics", hint) for path in paths)
