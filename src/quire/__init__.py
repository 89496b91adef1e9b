"""Quire: build a language model once into a Plan; run any Plan with paged KV cache and continuous batching."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.core.request import RequestOutput
    from quire.core.sampling_params import BeamSearchParams, SamplingParams
    from quire.llm import LLM
    from quire.plan.plan import Plan

__version__ = "0.1.0"

__all__ = ["LLM", "BeamSearchParams", "Plan", "RequestOutput", "SamplingParams", "__version__"]

_LAZY = {
    "LLM": "quire.llm",
    "BeamSearchParams": "quire.core.sampling_params",
    "Plan": "quire.plan.plan",
    "RequestOutput": "quire.core.request",
    "SamplingParams": "quire.core.sampling_params",
}


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that `import quire` and `quire --help` stay quick."""
    if name not in _LAZY:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
