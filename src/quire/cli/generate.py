"""`quire generate MODEL PROMPT...`: complete prompts, or the lines of a file or of standard input."""

from __future__ import annotations

import argparse
import sys

import msgspec

from quire.cli.options import add_fields, add_model, open_model, read_fields, require
from quire.core.sampling_params import SamplingParams

_SKIP = ("seed", "output_kind", "detokenize", "structured_outputs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="text to complete; none reads lines from stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object per completion")
    add_fields(parser, SamplingParams, skip=_SKIP)
    parser.add_argument("--sampling-seed", type=int, metavar="N", help="seed of every prompt's sampling")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Complete the prompts and print them."""
    prompts = options.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    require(bool(prompts), "PROMPT", "at least one", "none")
    params = read_fields(SamplingParams, options, seed=options.sampling_seed)
    with open_model(options) as llm:
        for output in llm.generate(prompts, params, use_tqdm=sys.stderr.isatty()):
            for completion in output.outputs:
                if options.json:
                    record = {"prompt": output.prompt, "text": completion.text, "token_ids": completion.token_ids,
                              "finish_reason": completion.finish_reason, "index": completion.index}  # fmt: skip
                    print(msgspec.json.encode(record).decode())
                else:
                    print(f"{output.prompt}{completion.text}")
