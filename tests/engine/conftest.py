"""Without transformers, which a machine with a GPU need not have, what is compared with it is left out."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("transformers") else ["test_hf.py", "test_quantized_checkpoints.py"]
