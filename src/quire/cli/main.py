"""The command `quire`: picks a subcommand and turns errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from quire import __version__
from quire.core.errors import QuireError, did_you_mean

COMMANDS = {
    "generate": "complete prompts",
    "chat": "talk with a model",
    "serve": "answer over HTTP, as OpenAI's clients expect",
    "build": "bind a model into an engine directory: fused, quantized, measured",
    "inspect": "show what a build did, cost and holds, or how two differ",
    "verify": "check every byte of an engine, and compute recorded logits again",
    "bench": "measure latency, throughput, start-up or a server",
    "plan": "show what fits into memory, before loading anything",
    "doctor": "find out why ranks or hosts cannot work together, and whose fault it is",
    "simulate": "predict throughput, latency and cost of a load on devices that need not be there",
    "env": "show versions, processor, GPU and memory",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        The exit code: 0, 2 for wrong use or a model that cannot be run, 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given[0] if given and given[0] in COMMANDS else None)
    options = parser.parse_args(given)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return int(options.run(options) or 0)
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; say nothing more
        return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the closest word that would be right."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        parsers = [self, *(child for action in self._actions if isinstance(action.choices, dict)
                           for child in action.choices.values())]  # fmt: skip
        known = [option for parser in parsers for option in parser._option_string_actions] + list(COMMANDS)
        words = [word.strip("',:") for word in message.split()]
        hint = next((hint for word in words if word not in known and (hint := did_you_mean(word, known))), "")
        self.exit(2, f"quire: {message}.{hint} See {self.prog} --help.\n")


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command's module is imported, so that help answers at once."""
    parser = _Parser("quire", description="Run large language models: build once, run anywhere.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"quire {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        description = summary[0].upper() + summary[1:] + "."
        child = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if name == command:
            import_module(f"quire.cli.{name}").configure(child)
    return parser
