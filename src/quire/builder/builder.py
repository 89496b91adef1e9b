"""`Builder`: from a network that a person defined to a Plan, by the same pipeline as every built-in model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quire.builder.build import as_plan
from quire.builder.pipeline import bind
from quire.builder.samples import calibration_samples, is_token, samples_of_ids
from quire.builder.serving import serving_spec
from quire.core.config import DTYPES, SCHEMES, BuildConfig, choice
from quire.core.errors import BuildError, ConfigError, did_you_mean
from quire.core.model_spec import ServingSpec
from quire.core.progress import OnProgress
from quire.graph.network import Network
from quire.graph.text import network_from_text, network_to_text
from quire.ops.spec import spec_of
from quire.plan.plan import Plan
from quire.plan.weight_source import TensorWeights, WeightSource
from quire.tokenizer.files import vocabulary_of
from quire.weights.dummy import DummyWeights
from quire.weights.open import open_weights

Weights = str | Path | Mapping[str, torch.Tensor]

_FOR_MODELS = {"revision": None, "hf_overrides": None}
"""Settings that say which Hugging Face model is meant: a network of one's own has none."""


class Builder:
    """Builds networks that are defined by hand.

    Example:
        >>> builder = Builder()
        >>> network = builder.create_network("tiny")
        >>> with net_guard(network):
        ...     define(network)
        >>> plan = builder.build_engine(network, builder.create_builder_config(precision="w8a16"), weights="model/")
        >>> llm = LLM(plan, skip_tokenizer_init=True)
    """

    def create_network(self, name: str = "network") -> Network:
        """Return an empty network, to be defined inside `net_guard(network)`."""
        return Network(name)

    def create_builder_config(self, precision: str = "auto", **settings: Any) -> BuildConfig:
        """Return how to build.

        Args:
            precision: A dtype ("float32", "bfloat16", "float16"), which must be the network's own, or a quantization
                scheme ("w8a16", "w8a8", "w4a16", "fp8"). "auto" leaves the network as it was defined.
            **settings: Fields of `BuildConfig`, for example `kv_cache_dtype`, `exclude` or `max_kl`.

        Raises:
            ConfigError: A name is unknown, a value cannot be honoured, or two settings contradict each other.
        """
        known = {field.name for field in fields(BuildConfig)}
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, {*known, "precision"})
                raise ConfigError(f"create_builder_config: unknown argument {name!r}.{hint}")
        choice("precision", precision, (*DTYPES, *SCHEMES))
        if precision == "auto":
            return BuildConfig(**settings)
        name = "quantization" if precision in SCHEMES else "dtype"
        if settings.setdefault(name, precision) != precision:
            raise ConfigError(f"{name}: expected {precision!r}, which precision says, got {settings[name]!r}.")
        return BuildConfig(**settings)

    def build_engine(
        self,
        network: Network,
        config: BuildConfig | None = None,
        *,
        weights: Weights | None = None,
        tokenizer: str | Path | None = None,
        max_position_embeddings: int | None = None,
        eos_token_ids: Sequence[int] = (),
        samples: Sequence[Sequence[int]] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Plan:
        """Build a Plan: fuse, quantize, fold. The network stays as it is.

        Args:
            network: A decoder, with the inputs of `layers.DecoderInputs` and the output `logits` [num_tokens,
                vocab_size].
            config: From `create_builder_config`; None takes its defaults.
            weights: A safetensors file, a directory of them, or tensors by name, of the declared shapes and dtypes
                (those in files are cast). None with `load_format="dummy"`.
            tokenizer: Directory of a tokenizer that goes with the Plan; None: the Plan works with token ids.
            max_position_embeddings: Longest sequence in tokens; None: as long as the network's positions reach.
            eos_token_ids: Ids that end a sample, beside those that the tokenizer knows.
            samples: Token ids of at least two texts to calibrate and evaluate a quantized build on. None takes text if
                there is a tokenizer (`calibration` names a file), else random ids.
            on_progress: Told how far calibration and evaluation are.

        Raises:
            BuildError: The network is not what a runtime can run, a weight is missing or does not fit, or quantization
                costs more accuracy than `config.max_kl` allows.
            ConfigError: A setting cannot be honoured.
            PlanError: The weights or the tokenizer are missing or damaged.
        """
        settings = config or BuildConfig()
        _check_kinds(network, settings)
        spec = serving_spec(network, max_position_embeddings, eos_token_ids)
        _check_settings(settings, spec)
        directory = None if tokenizer is None else _tokenizer_directory(Path(tokenizer))
        copy = network_from_text(network_to_text(network), network.name)
        if samples is None:
            read_samples = partial(calibration_samples, directory, spec, settings)
        else:
            _check_quantizes(settings)
            read_samples = partial(samples_of_ids, samples, spec, settings)
        bound = bind(copy, settings, partial(_open_weights, weights, settings), read_samples, on_progress)
        return as_plan(bound, spec, settings, directory)


def _check_kinds(network: object, config: object) -> None:
    if not isinstance(network, Network):
        raise BuildError(f"network: expected a Network, from create_network, got {type(network).__name__}.")
    if not isinstance(config, BuildConfig):
        raise BuildError(f"config: expected a BuildConfig, from create_builder_config, got {type(config).__name__}.")


def _check_settings(config: BuildConfig, spec: ServingSpec) -> None:
    """Refuse what would otherwise be ignored, or fail much later."""
    if config.dtype not in ("auto", spec.dtype):
        raise ConfigError(f"precision: expected {spec.dtype}, in which network {spec.architecture!r} is defined, got "
                          f"{config.dtype}; define the network in it.")  # fmt: skip
    for name, default in _FOR_MODELS.items():
        if getattr(config, name) != default:
            raise ConfigError(f"{name}: expected {default}, since the network is not a Hugging Face model's, got "
                              f"{getattr(config, name)!r}.")  # fmt: skip
    wrong = next((token for token in spec.eos_token_ids if not is_token(token, spec.vocab_size)), None)
    if wrong is not None:
        raise ConfigError(f"eos_token_ids: expected ids in [0, {spec.vocab_size}), got {wrong!r}.")


def _check_quantizes(config: BuildConfig) -> None:
    if config.quantization is None and config.kv_cache_dtype == "auto":
        raise ConfigError("samples: expected None, since precision and kv_cache_dtype quantize nothing, got some.")


def _tokenizer_directory(directory: Path) -> Path:
    """Return a directory in which a tokenizer's vocabulary is."""
    vocabulary_of(directory)
    return directory


def _open_weights(weights: Weights | None, config: BuildConfig, network: Network) -> WeightSource:
    """Return the weights that a network declares."""
    declared = network.weights
    if config.load_format == "dummy":
        if weights is not None:
            raise ConfigError("load_format: expected 'auto', since weights are given, got 'dummy'.")
        return DummyWeights(declared, config.seed)
    if weights is None:
        raise BuildError(f"weights: expected a directory, a file or tensors for {len(declared)} declared weights, got "
                         'None; load_format="dummy" builds with random ones.')  # fmt: skip
    if isinstance(weights, Mapping):
        return _given_tensors(weights, network)
    return open_weights(Path(weights), declared, lambda name: name if name in declared else None)


def _given_tensors(weights: Mapping[str, torch.Tensor], network: Network) -> WeightSource:
    """Return tensors in memory as a source, each held against its declaration; others are not needed."""
    tensors = {}
    for name, declared in network.weights.items():
        if name not in weights:
            raise BuildError(f"weight {name!r}: expected {declared}, got none.{did_you_mean(name, weights)}")
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor):
            raise BuildError(f"weight {name!r}: expected a torch tensor, got {type(tensor).__name__}.")
        if spec_of(tensor) != declared:
            raise BuildError(f"weight {name!r}: expected {declared}, got {spec_of(tensor)}.")
        tensors[name] = tensor.detach().cpu().contiguous()
    return TensorWeights(tensors)
