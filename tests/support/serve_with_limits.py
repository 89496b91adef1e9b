"""`quire serve` with other limits of connections: `python -m tests.support.serve_with_limits '{...}' MODEL OPTIONS`."""

import argparse
import json
import sys

from quire.cli import serve
from quire.server.http.limits import Limits

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    serve.configure(parser)
    sys.exit(serve.serve_model(parser.parse_args(sys.argv[2:]), Limits(**json.loads(sys.argv[1]))))
