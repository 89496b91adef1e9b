"""Complete the three prompts of the README with the built-in model, or with the one named on the command line."""

import sys
import time

from quire import LLM, SamplingParams

prompts = [
    "Hello, my name is",
    "The capital of France is",
    "The future of AI is",
]


def main() -> None:
    """Generate and print."""
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=32)
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else "quire-tiny")
    start = time.perf_counter()
    outputs = llm.generate(prompts, sampling_params)
    seconds = time.perf_counter() - start
    for output in outputs:
        print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(f"{num_tokens} tokens in {seconds:.2f} s: {num_tokens / seconds:,.0f} tokens/s")


if __name__ == "__main__":
    main()
