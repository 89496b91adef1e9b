"""tokenizer: text to ids and back.

Decides: which tokenizer files are read, how a chat becomes a prompt, when text is safe to show, where a stop string
ends it. Speaks: str, bytes and lists of token ids. Owns: the vocabulary, the chat template, the text tails of running
samples. Never: torch, transformers, the network, code from a checkpoint.
Door: `Tokenizer.from_directory`, then `IncrementalDetokenizer` and `StopChecker` per sample.
"""

from quire.tokenizer.detokenizer import IncrementalDetokenizer
from quire.tokenizer.stop_checker import StopChecker
from quire.tokenizer.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer", "StopChecker", "Tokenizer"]
