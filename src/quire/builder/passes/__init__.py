"""The passes, in order: a list to be read aloud. Each changes the network and reports its matches."""

from __future__ import annotations

from collections.abc import Callable

from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.gather_last_token import gather_last_token
from quire.builder.passes.matches import Matches
from quire.graph.network import Network

Pass = Callable[[Network], Matches]

FUSE: tuple[Pass, ...] = ()
"""Before the numbers change: fewer and larger ops. Calibration looks at the network that they leave."""

FUSE_QUANTIZED: tuple[Pass, ...] = ()
"""After the numbers have changed: what rounds activations joins what makes them."""

FINISH: tuple[Pass, ...] = (gather_last_token, drop_dead)
"""What is right for every plan, quantized or not."""
