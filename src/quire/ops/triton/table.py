"""The tactics of NVIDIA GPUs, by op in order of preference: the first that is valid is the default."""

from __future__ import annotations

from quire.ops.tactic import Tactic

TACTICS: tuple[Tactic, ...] = ()
