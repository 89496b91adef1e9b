"""Define a small decoder by hand, run it op by op, build it, serve it, and see that both say the same.

The weights are random, so what it says means nothing; that it is the same, whichever way it is computed, does.
"""

from collections.abc import Mapping, Sequence

import torch

from quire import LLM, Builder, Network, SamplingParams, Tensor, functional, layers, net_guard

VOCAB_SIZE, HIDDEN_SIZE, INTERMEDIATE_SIZE = 200, 64, 160
NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 2, 4, 2, 16
MAX_LENGTH = 64
DTYPE = "float32"


def define(network: Network) -> None:
    """Write the decoder down: what a layer computes, and what its weights are called."""
    with net_guard(network):
        inputs = layers.DecoderInputs.declare(NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, DTYPE)
        angles = functional.rope_table(MAX_LENGTH, HEAD_DIM)
        embedding = layers.Embedding("embed", VOCAB_SIZE, HIDDEN_SIZE, DTYPE)
        x = embedding(inputs.input_ids)
        for layer in range(NUM_LAYERS):
            x = x + attention(layer, norm(f"layers.{layer}.norm_1", x), angles, inputs)
            x = x + mlp(layer, norm(f"layers.{layer}.norm_2", x))
        logits = functional.linear(norm("norm", x), embedding.weight)
        logits.mark_output("logits")


def norm(name: str, x: Tensor) -> Tensor:
    """Normalise [num_tokens, hidden_size]."""
    return layers.RmsNorm(name, HIDDEN_SIZE, 1e-5, DTYPE)(x)


def attention(layer: int, x: Tensor, angles: Tensor, inputs: layers.DecoderInputs) -> Tensor:
    """Grouped-query attention with rotary positions over [num_tokens, hidden_size]."""

    def heads(name: str, num_heads: int) -> Tensor:
        projection = layers.ColumnLinear(f"layers.{layer}.{name}", HIDDEN_SIZE, num_heads * HEAD_DIM, DTYPE)
        return projection(x).view(-1, num_heads, HEAD_DIM)

    query = functional.rope(heads("q_proj", NUM_HEADS), inputs.step.positions, angles)
    key = functional.rope(heads("k_proj", NUM_KV_HEADS), inputs.step.positions, angles)
    attend = layers.Attention(layer, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, scale=HEAD_DIM**-0.5)
    out = attend(query, key, heads("v_proj", NUM_KV_HEADS), inputs.kv_caches[layer], inputs.step)
    return layers.RowLinear(f"layers.{layer}.o_proj", NUM_HEADS * HEAD_DIM, HIDDEN_SIZE, DTYPE)(out)


def mlp(layer: int, x: Tensor) -> Tensor:
    """A gated MLP over [num_tokens, hidden_size]."""
    return layers.GatedMLP(
        gate=layers.ColumnLinear(f"layers.{layer}.gate_proj", HIDDEN_SIZE, INTERMEDIATE_SIZE, DTYPE),
        up=layers.ColumnLinear(f"layers.{layer}.up_proj", HIDDEN_SIZE, INTERMEDIATE_SIZE, DTYPE),
        down=layers.RowLinear(f"layers.{layer}.down_proj", INTERMEDIATE_SIZE, HIDDEN_SIZE, DTYPE),
        act=functional.silu,
    )(x)


def random_weights(network: Network, seed: int) -> dict[str, torch.Tensor]:
    """Return a tensor for every weight that the network declares: ones for norms, random matrices."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, declared in network.weights.items():
        sizes = [int(size) for size in declared.shape]
        is_norm = len(sizes) == 1
        weights[name] = torch.ones(sizes) if is_norm else torch.randn(sizes, generator=generator) * sizes[-1] ** -0.5
    return weights


def generate_eagerly(
    network: Network, weights: Mapping[str, torch.Tensor], prompt: Sequence[int], num_tokens: int
) -> list[int]:
    """Continue a prompt greedily with `network.run`: the plain torch definition of every op, one after the other.

    All keys and values lie in block 0 of the cache, so that a token's slot is its position.
    """
    sizes = {"num_blocks": 1, "block_size": MAX_LENGTH}
    caches = {
        name: torch.zeros([size if isinstance(size, int) else sizes[size] for size in declared.shape])
        for name, declared in network.inputs.items()
        if name.startswith("kv_cache.")
    }
    ids, new = list(prompt), list(prompt)
    for _ in range(num_tokens):
        positions = range(len(ids) - len(new), len(ids))
        step = {
            "input_ids": new,
            "positions": positions,
            "slot_mapping": positions,
            "block_table": [[0]],
            "seq_lens": [len(ids)],
            "query_start_loc": [0, len(new)],
        }
        tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in step.items()}
        logits = network.run({**tensors, **caches}, weights)["logits"]
        new = [int(logits[-1].argmax())]
        ids += new
    return ids[len(prompt) :]


def main() -> None:
    """Define, run, build, serve, compare."""
    builder = Builder()
    network = builder.create_network("my decoder")
    define(network)
    print(network)

    weights, prompt = random_weights(network, seed=0), [3, 14, 15, 92, 65]
    eager = generate_eagerly(network, weights, prompt, num_tokens=20)
    print("\nop by op:", eager)

    plan = builder.build_engine(network, builder.create_builder_config(precision=DTYPE), weights=weights)
    with LLM(plan, skip_tokenizer_init=True, max_num_seqs=8) as llm:
        params = SamplingParams(temperature=0, max_tokens=20, detokenize=False)
        outputs = llm.generate([prompt, prompt[:2]], params, use_tqdm=False)
    served = list(outputs[0].outputs[0].token_ids)
    print("served:  ", served)
    print("the same" if served == eager else "NOT the same")


if __name__ == "__main__":
    main()
