"""Quire: build a language model once into a Plan; run any Plan with paged KV cache and continuous batching."""

from importlib import import_module
from typing import TYPE_CHECKING

from quire.core.collecting import without_collecting

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


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that `import quire` and `quire --help` stay quick."""
    with without_collecting():
        if name in _LAZY_MODULES:
            return import_module(_LAZY_MODULES[name])
        if name not in _LAZY:
            raise AttributeError(f"module 'quire' has no attribute {name!r}")
        return getattr(import_module(_LAZY[name]), name)
