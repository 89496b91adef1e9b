"""`quire serve` that keeps a little of each request: what a test of leaks must find."""

import sys

from quire.cli.main import main
from quire.engine.output import OutputProcessor

kept = []
report = OutputProcessor.report


def leak(self: OutputProcessor, request_id: str) -> object:
    """Report, and keep four kilobytes."""
    kept.append(bytearray(4096))
    return report(self, request_id)


if __name__ == "__main__":
    OutputProcessor.report = leak
    sys.exit(main(["serve", *sys.argv[1:]]))
