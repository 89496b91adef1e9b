"""`quire chat MODEL`: a conversation in the terminal; answers appear as they are generated."""

from __future__ import annotations

import argparse
import sys

from quire.cli.options import add_fields, add_model, open_model, read_fields
from quire.core.sampling_params import SamplingParams

_SKIP = ("n", "seed", "output_kind", "detokenize", "structured_outputs", "logprobs", "prompt_logprobs", "max_tokens")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    add_fields(parser, SamplingParams, skip=_SKIP)
    parser.set_defaults(run=run, temperature=0.7, top_p=0.95)


def run(options: argparse.Namespace) -> None:
    """Read a line, stream the answer, until end of input."""
    params = read_fields(SamplingParams, options)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    with open_model(options) as llm:
        tokenizer = llm.get_tokenizer()
        if sys.stdin.isatty():
            print("Write a message and press Enter; Ctrl-D ends the chat.", file=sys.stderr)
        while (line := _read()) is not None:
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            answer = ""
            for output in llm.stream(tokenizer.apply_chat_template(messages), params):
                print(output.outputs[0].text, end="", flush=True)
                answer += output.outputs[0].text
            print()
            messages.append({"role": "assistant", "content": answer})


def _read() -> str | None:
    """Return the next line, None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
