"""How idle pipeline stages are: of the time with work, the share in which a rank has nothing to compute.

One request keeps one of two stages busy, so half of the time is idle. With as many requests as stages, each in a batch
of its own, what remains is what stages differ in, and the steps at the start and the end.

    scripts/bench bubble [--model quire-tiny] [--stages 2] [--requests 1 2 16] [--partition balanced] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

from benchmarks.record import record
from quire import LLM, SamplingParams

_PROMPT, _OUTPUT = 32, 96


def measure(model: str, num_stages: int, num_requests: int, partition: str | None) -> dict[str, float]:
    """Return the share that is idle, and output tokens per second, of requests that all come at once."""
    params = SamplingParams(max_tokens=_OUTPUT, temperature=0.0, ignore_eos=True, detokenize=False)
    prompts = [[5 + (7 * row + at) % 199 for at in range(_PROMPT)] for row in range(num_requests)]
    sizes: dict[str, Any] = {"pipeline_parallel_size": num_stages, "pipeline_partition": partition}
    with LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, max_model_len=256, **sizes) as llm:
        (started, *_) = llm.generate(prompts[:1], replace(params, max_tokens=1), use_tqdm=False)
        assert started.finished
        began_s = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds, idle = time.perf_counter() - began_s, llm.get_metrics()["pipeline_bubble_perc"]
    return {"idle": 100 * idle, "output": num_requests * _OUTPUT / seconds}


def main() -> None:
    """Record each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quire-tiny")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 2, 16])
    parser.add_argument("--partition")
    parser.add_argument("--json", action="store_true", help="print JSON, and record nothing")
    options = parser.parse_args()
    for count in options.requests:
        found = measure(options.model, options.stages, count, options.partition)
        if options.json:
            print(json.dumps({"requests": count, **found}), flush=True)
            continue
        name = f"bubble.{options.model.rstrip('/').rpartition('/')[2]}.pp{options.stages}.{count}_requests"
        record(f"{name}.idle", "%", [found["idle"]])
        record(f"{name}.output", "tokens/s", [found["output"]])


if __name__ == "__main__":
    main()
