"""One decoder layer and what is around it, small enough to read."""

import torch

from quire.builder.fusions.fuse_add_rms_norm import fuse_add_rms_norm
from quire.builder.fusions.fuse_qkv import fuse_qkv
from quire.core.model_spec import ServingSpec
from quire.graph import functional as F
from quire.graph.layers import MLP, Attention, DecoderInputs, Embedding, Linear, RmsNorm
from quire.graph.network import Network, net_guard
from quire.plan.plan import Plan
from quire.plan.weight_source import TensorWeights

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER = 11, 8, 4, 2, 4, 12


def small_network(num_layers=1, linear=Linear, down=Linear):
    """Embedding, layers of attention and an MLP with biases, norm, head; fused as a plan is."""
    network = Network("small")
    with net_guard(network):
        inputs = DecoderInputs.declare(num_layers, KV_HEADS, HEAD_DIM, "float32")
        x = Embedding("embed", VOCAB, WIDTH, "float32")(inputs.input_ids)
        for i in range(num_layers):
            n = RmsNorm(f"{i}.norm", WIDTH, 1e-5, "float32")(x)
            q, k, v = (linear(f"{i}.{name}_proj", WIDTH, heads * HEAD_DIM, "float32")(n).view(-1, heads, HEAD_DIM)
                       for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))  # fmt: skip
            attention = Attention(i, HEADS, KV_HEADS, HEAD_DIM, 0.5)
            out = attention(q, k, v, inputs.kv_caches[i], inputs.step)
            x = x + down(f"{i}.o_proj", HEADS * HEAD_DIM, WIDTH, "float32", bias=True)(out)
            mlp = MLP(linear(f"{i}.up", WIDTH, INNER, "float32"), down(f"{i}.down", INNER, WIDTH, "float32"), F.gelu)
            x = x + mlp(RmsNorm(f"{i}.mlp_norm", WIDTH, 1e-5, "float32")(x))
        x = RmsNorm("norm", WIDTH, 1e-5, "float32")(x)
        Linear("head", WIDTH, VOCAB, "float32")(x).mark_output("logits")
    fuse_qkv(network)
    fuse_add_rms_norm(network)
    return network


def plan_of(network, num_layers=1):
    """A plan of a network with random weights."""
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(spec.shape, generator=generator) / 4 for name, spec in network.weights.items()}
    spec = ServingSpec("small", "float32", VOCAB, num_layers, KV_HEADS, HEAD_DIM, 32)
    return Plan(network, spec, TensorWeights(weights))
