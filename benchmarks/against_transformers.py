"""Quire beside transformers in one run: decode of one stream, and many requests offline.

    scripts/bench against_transformers [--size base|small] [--repeat 3]

transformers runs one request at a time (eager, SDPA, KV cache), as a script of a user would; Quire gets all at once.
Both load the same random weights, and the greedy tokens of the first request are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import record
from benchmarks.workloads import VOCAB, Requests, offline_requests, prompt
from quire import LLM, SamplingParams
from quire.plan.memory import bytes_read_per_token, flops_per_token
from quire.runner.device import measure_roof

SHAPES = {
    "base": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64},
    "small": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6,
              "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
}  # fmt: skip


@contextmanager
def checkpoint(size: str) -> Iterator[Path]:
    """Save a random Llama in bf16 and yield its directory."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=4096, tie_word_embeddings=True, dtype="bfloat16",
                         **SHAPES[size])  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
        yield Path(directory)


class Transformers:
    """The peer: greedy, one request at a time."""

    def __init__(self, directory: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(self, requests: Requests) -> list[list[int]]:
        """Return the generated ids of each request."""
        found = []
        for ids, count in requests:
            inputs = torch.tensor([ids])
            out = self._model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, min_new_tokens=count,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
            found.append(out[0, len(ids) :].tolist())
        return found


class Quire:
    """All requests at once."""

    def __init__(self, directory: Path) -> None:
        self.llm = LLM(directory, skip_tokenizer_init=True, max_num_seqs=64)

    def run(self, requests: Requests) -> list[list[int]]:
        """Return the generated ids of each request."""
        params = [
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False) for _, count in requests
        ]
        outputs = self.llm.generate([ids for ids, _ in requests], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


def seconds(engine: Transformers | Quire, requests: Requests) -> float:
    """Return how long an engine takes for the requests."""
    start = time.perf_counter()
    done = engine.run(requests)
    assert [len(ids) for ids in done] == [count for _, count in requests]
    return time.perf_counter() - start


def decode_rate(engine: Transformers | Quire, repeat: int, count: int = 64) -> float:
    """Return tokens/s of one stream after 128 prompt tokens, the prompt's time taken off."""
    ids = prompt(f"decode{repeat}", 128)
    first = seconds(engine, [(prompt(f"first{repeat}", 128), 1)])
    return (count - 1) / (seconds(engine, [(ids, count)]) - first)


def offline_rate(engine: Transformers | Quire, requests: Requests) -> float:
    """Return generated tokens/s over a set of requests."""
    return sum(count for _, count in requests) / seconds(engine, requests)


def main() -> None:
    """Measure both engines in turn and record the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="base")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer-requests", type=int, default=8, help="of the 64 that the peer runs, one at a time")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    with checkpoint(options.size) as directory:
        peer, ours = Transformers(directory), Quire(directory)
        check = [(prompt("check", 128), 8)]
        # Random weights leave near ties that bf16 rounding decides, so the two part sooner or later.
        pairs = list(zip(peer.run(check)[0], ours.run(check)[0], strict=True))
        alike = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        print(f"the first {alike} of {len(pairs)} greedy tokens are the same", flush=True)
        measure(peer, ours, options)


def measure(peer: Transformers, ours: Quire, options: argparse.Namespace) -> None:
    """Run the workloads, the two engines in turn."""
    rates: dict[str, list[float]] = {}
    for repeat in range(options.repeat):
        requests = offline_requests(repeat)
        few = requests[:: max(1, len(requests) // options.peer_requests)]
        for name, value in (
            ("decode_1.transformers", decode_rate(peer, repeat)),
            ("decode_1.quire", decode_rate(ours, repeat)),
            ("offline_64.transformers", offline_rate(peer, few)),
            ("offline_64.quire", offline_rate(ours, requests)),
        ):
            rates.setdefault(name, []).append(value)
            print(f"  {name} {value:,.2f}", flush=True)
    save, label = not options.no_save, f"{options.size}.bf16"
    for name, values in rates.items():
        record(f"{name}.{label}", "tokens/s", values, save=save)
    for workload in ("decode_1", "offline_64"):
        pairs = zip(rates[f"{workload}.quire"], rates[f"{workload}.transformers"], strict=True)
        record(f"{workload}.ratio.{label}", "x", [a / b for a, b in pairs], save=save)
    roof = measure_roof("bfloat16")
    network = ours.llm.plan.network
    read = [rate * bytes_read_per_token(network) / roof.read_bytes_per_s for rate in rates["decode_1.quire"]]
    record(f"decode_1.quire_of_read_roof.{label}", "share", read, save=save)
    requests = offline_requests(0)
    tokens = sum(len(ids) + count for ids, count in requests) / sum(count for _, count in requests)
    flops = [rate * tokens * flops_per_token(network) / roof.flops for rate in rates["offline_64.quire"]]
    record(f"offline_64.quire_of_matmul_roof.{label}", "share", flops, save=save)
    record("roof.read", "GB/s", [roof.read_bytes_per_s / 1e9], save=save)
    record("roof.matmul.bf16", "GFLOP/s", [roof.flops / 1e9], save=save)


if __name__ == "__main__":
    main()
