"""Quire: build a language model once into a Plan; run any Plan with paged KV cache and continuous batching."""

import atexit
import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.builder.builder import Builder
    from quire.core.mapping import Mapping
    from quire.core.request import RequestOutput
    from quire.core.sampling_params import BeamSearchParams, SamplingParams
    from quire.core.structured_outputs import StructuredOutputsParams
    from quire.graph import functional, layers
    from quire.graph.network import Network, Tensor, net_guard
    from quire.llm import LLM
    from quire.plan.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamSearchParams",
    "Builder",
    "Mapping",
    "Network",
    "Plan",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tensor",
    "__version__",
    "functional",
    "layers",
    "net_guard",
]

_LAZY = {
    "LLM": "quire.llm",
    "BeamSearchParams": "quire.core.sampling_params",
    "Builder": "quire.builder.builder",
    "Mapping": "quire.core.mapping",
    "Network": "quire.graph.network",
    "Plan": "quire.plan.plan",
    "RequestOutput": "quire.core.request",
    "SamplingParams": "quire.core.sampling_params",
    "StructuredOutputsParams": "quire.core.structured_outputs",
    "Tensor": "quire.graph.network",
    "net_guard": "quire.graph.network",
}
_LAZY_MODULES = {"functional": "quire.graph.functional", "layers": "quire.graph.layers"}


def import_quickly(name: str) -> ModuleType:
    """Import a module without collecting garbage meanwhile.

    torch makes a million objects that stay, and the collector would walk over all of them again whenever a share has
    been added, which is a fifth of the time that imports take (0.4 of 2.6 s). Afterwards it never walks over them
    either, which would take 120 ms in the middle of a step: what there is when torch has come is frozen, once.
    """
    was_enabled, had_torch = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        return import_module(name)
    finally:
        if not had_torch and "torch" in sys.modules:
            gc.freeze()
            atexit.register(gc.unfreeze)  # at the end everything is taken down
        if was_enabled:
            gc.enable()


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that `import quire` and `quire --help` stay quick."""
    if name in _LAZY_MODULES:
        return import_quickly(_LAZY_MODULES[name])
    if name not in _LAZY:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(import_quickly(_LAZY[name]), name)
