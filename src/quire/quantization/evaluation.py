"""`evaluate`: what quantization costs, on text that calibration has not seen; `check`: whether that is too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quire.core.config import BuildConfig
from quire.core.errors import BuildError
from quire.graph.network import Network
from quire.graph.nodes import op_of
from quire.plan.weight_source import WeightSource
from quire.quantization.recipe import Recipe
from quire.quantization.walk import Samples, Visit, batches, walk

_ROWS = 256  # logits in memory at once
_QUANTILES = (0.5, 0.9, 0.99, 1.0)
_NUM_WORST = 8

MAX_KL = {"w8a16": 0.004, "w8a8": 0.004, "fp8": 0.01, "w4a16": 0.1, "int8": 0.004}
"""Mean KL(exact || quantized), in nats a token, that a scheme (or a dtype of the KV cache) may cost by default.

Set by what the schemes cost the built-in model: w8a8 0.0002, and 0.005 where outliers are not smoothed away; fp8
0.0006; w4a16 0.003. Larger models may need more, and say by how much when they are refused.
"""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A quantized network against the exact one, token by token on the same text.

    Attributes:
        num_tokens: Tokens that both predicted.
        kl: Mean of KL(exact || quantized), in nats a token.
        reverse_kl: Mean of KL(quantized || exact), in nats a token.
        kl_quantiles: KL(exact || quantized) of the token at each of 0.5, 0.9, 0.99 and 1 of all tokens.
        top1_agreement: Share of tokens at which both hold the same token most likely.
        perplexity: Of the quantized network.
        exact_perplexity: Of the exact one.
    """

    num_tokens: int
    kl: float
    reverse_kl: float
    kl_quantiles: Mapping[str, float]
    top1_agreement: float
    perplexity: float
    exact_perplexity: float

    @property
    def perplexity_change(self) -> float:
        """Perplexity of the quantized network beside that of the exact one: 0.01 is one per cent more."""
        return self.perplexity / self.exact_perplexity - 1

    def as_record(self) -> dict[str, Any]:
        """Return plain JSON values for the build report."""
        return {**asdict(self), "perplexity_change": self.perplexity_change}


def evaluate(
    exact: tuple[Network, WeightSource],
    quantized: tuple[Network, WeightSource],
    samples: Samples,
    on_progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Run both networks over the same samples and compare what they predict.

    Args:
        exact: The network before its numbers changed, with its weights.
        quantized: The network after.
        samples: Token ids, each of at least two.
        on_progress: Called with calls computed so far, and their number.
    """
    last = [_last_visit(*pair, samples, on_progress, part) for part, pair in enumerate((exact, quantized))]
    pieces = [_compare(p, q, targets) for p, q, targets in _rows(last[0], last[1], samples)]
    forward, reverse, agrees, exact_loss, loss = (torch.cat(column) for column in zip(*pieces, strict=True))
    quantiles = torch.quantile(forward, torch.tensor(_QUANTILES, dtype=forward.dtype)).tolist()
    return Accuracy(
        num_tokens=len(forward),
        kl=float(forward.mean()),
        reverse_kl=float(reverse.mean()),
        kl_quantiles={f"{q:g}": value for q, value in zip(_QUANTILES, quantiles, strict=True)},
        top1_agreement=float(agrees.double().mean()),
        perplexity=_exp(float(loss.mean())),
        exact_perplexity=_exp(float(exact_loss.mean())),
    )


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.inf


def _last_visit(
    network: Network,
    weights: WeightSource,
    samples: Samples,
    on_progress: Callable[[int, int], None] | None,
    part: int,
) -> Visit:
    """Return the visit of the call that makes the logits, which is not computed: all of them at once may not fit."""
    logits = network.outputs["logits"]
    for visit in walk(network, weights, samples):
        if on_progress is not None:
            on_progress(part * visit.total + visit.index + 1, 2 * visit.total)
        if visit.node is logits:
            return visit
    raise BuildError(f"network {network.name!r}: expected a call that makes the logits, got none.")


@torch.inference_mode()
def _rows(exact: Visit, quantized: Visit, samples: Samples) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield both logits [rows, vocab_size], float32, and the token that follows each row [rows]."""
    for i, batch in enumerate(batches(samples)):
        targets = torch.tensor([token for sample in batch for token in (*sample[1:], -1)])
        for piece in torch.nonzero(targets >= 0).view(-1).split(_ROWS):  # type: ignore[no-untyped-call]
            yield _logits(exact, i, piece), _logits(quantized, i, piece), targets[piece]


def _logits(visit: Visit, batch: int, rows: Tensor) -> Tensor:
    """Compute some rows of the call that makes the logits."""
    given = dict(visit.arguments[batch])
    for name in ("x", "x_scales"):
        if name in given:
            given[name] = given[name][rows]
    logits: Tensor = op_of(visit.node).reference(**given)
    return logits.float()


@torch.inference_mode()
def _compare(exact: Tensor, quantized: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return per row: KL both ways, agreement, and both losses; logits [rows, vocab_size], targets [rows]."""
    p, q = exact.log_softmax(-1), quantized.log_softmax(-1)
    difference = p - q
    forward = (p.exp() * difference).sum(-1, dtype=torch.float64)
    reverse = -(q.exp() * difference).sum(-1, dtype=torch.float64)
    at = targets.unsqueeze(-1)
    losses = (-logprobs.gather(-1, at).squeeze(-1).double() for logprobs in (p, q))
    return (forward, reverse, exact.argmax(-1) == quantized.argmax(-1), *losses)


def worst_layers(recipe: Recipe) -> list[tuple[str, float]]:
    """Return the layers whose outputs moved most on calibration text, worst first, with their relative errors."""
    errors = ((name, linear.error) for name, linear in recipe.linears.items())
    return sorted(errors, key=lambda pair: -pair[1])[:_NUM_WORST]


def largest_kl(config: BuildConfig) -> float:
    """Return the limit that a build is held to: the one that is set, or the most generous of what it uses."""
    if config.max_kl is not None:
        return config.max_kl
    return max(MAX_KL[used] for used in (config.quantization, config.kv_cache_dtype) if used in MAX_KL)


def check(accuracy: Accuracy, recipe: Recipe, max_kl: float) -> None:
    """Refuse a quantized network that is too far from the exact one.

    Raises:
        BuildError: Its mean KL divergence is over `max_kl` or not a number; the message gives the numbers, the layers
            with the largest errors, and what to do.
    """
    if accuracy.kl <= max_kl:
        return
    worst = worst_layers(recipe)[:3]
    shown = ", ".join(f"{name} ({error:.1%})" for name, error in worst) or "none: only the KV cache was quantized"
    raise BuildError(
        f"quantization costs too much accuracy: expected a mean KL divergence of at most {max_kl:g} nats a token, got "
        f"{accuracy.kl:.4g} (top-1 agreement {accuracy.top1_agreement:.1%}, perplexity {accuracy.exact_perplexity:.4g} "
        f"before and {accuracy.perplexity:.4g} after, on {accuracy.num_tokens} tokens). Layers with the largest "
        f"errors: {shown}. Exclude them (exclude), choose another scheme, or allow it (max_kl)."
    )
