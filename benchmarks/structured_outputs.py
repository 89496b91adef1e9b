"""What a grammar costs in a step: the time of a row's mask, and of applying it to logits on a CPU.

    scripts/bench structured_outputs [--vocab-size 32000 128000] [--rows 32] [--threads 2]

The vocabulary is made up: all bytes, and random words of two to nine characters, half of them after a space. Texts are
random among what their grammar allows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
import torch

from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.edits import apply_edits
from quire.sampling.grammar.checker import GrammarChecker
from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary, num_words
from quire.sampling.grammar.state import GrammarState

EOS = 0
NUM_TEXTS, NUM_TOKENS = 12, 60
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "when": {"type": "string", "format": "date-time"},
    },
    "required": ["name", "age", "kind", "when"],
    "additionalProperties": False,
}
FORMS = {
    "schema": StructuredOutputsParams(json=PERSON),
    "json_object": StructuredOutputsParams(json_object=True),
    "regex": StructuredOutputsParams(regex=r"(https?://)?[a-z0-9.-]+\.[a-z]{2,6}(/[^\s]*)?"),
    "choice of 1000": StructuredOutputsParams(choice=[f"option number {i}" for i in range(1000)]),
    "grammar": StructuredOutputsParams(grammar='start: sum\nsum: term | sum "+" term\nterm: /[0-9]+/ | "(" sum ")"'),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Cost of structured outputs")
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checker = GrammarChecker()
    for vocab_size in options.vocab_size:
        vocabulary = made_up(vocab_size)
        grammars = GrammarCompiler(lambda vocabulary=vocabulary: vocabulary)  # type: ignore[misc]
        print(f"{vocab_size} tokens: vocabulary {1e3 * _seconds(grammars.prepare):.0f} ms")
        for name, form in FORMS.items():
            _measure(name, form, checker, grammars)
        _compare_threads(grammars, options.rows, options.threads)
    checker.close()


def made_up(vocab_size: int) -> TokenVocabulary:
    """Return a vocabulary.

    Args:
        vocab_size: Its tokens.
    """
    rng = random.Random(0)
    words: dict[bytes, None] = {b"</s>": None} | dict.fromkeys(bytes([byte]) for byte in range(256))
    while len(words) < vocab_size:
        letters = rng.choices('etaoinshrdlucmfwypvbgk0123456789.,":{}[]-_', k=rng.randint(2, 9))
        words[("".join(letters) if rng.random() < 0.5 else " " + "".join(letters)).encode()] = None
    return TokenVocabulary(list(words), frozenset({EOS}), frozenset({EOS}))


def _seconds(call: object, *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start


def _measure(name: str, form: StructuredOutputsParams, checker: GrammarChecker, grammars: GrammarCompiler) -> None:
    check_ms, compile_ms = 1e3 * _seconds(checker.check, form), 1e3 * _seconds(grammars.prepare, form)
    vocab_size, rng = len(grammars.vocabulary.tokens), np.random.default_rng(0)
    logits = torch.randn(1, vocab_size)
    masks, applied = [], []
    for _ in range(NUM_TEXTS):
        state, token_ids = GrammarState(grammars, form), [-1]
        token_ids.pop()
        for _ in range(NUM_TOKENS):
            start = time.perf_counter()
            words = state.mask(token_ids)
            masks.append(1e6 * (time.perf_counter() - start))
            applied.append(1e6 * _seconds(apply_edits, logits.clone(), {}, {0: words}))
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little"))
            token_ids.append(int(rng.choice(allowed)))
            if token_ids[-1] == EOS:
                break
    p50, p99 = statistics.median(masks), sorted(masks)[len(masks) * 99 // 100]
    print(
        f"  {name:15} check {check_ms:6.1f} ms, compile {compile_ms:5.1f} ms; mask {p50:5.0f} us, p99 {p99:5.0f}, "
        f"most {max(masks):5.0f}; applied in {statistics.median(applied):4.0f} us"
    )


def _compare_threads(grammars: GrammarCompiler, num_rows: int, num_threads: int) -> None:
    """Compare rows one by one with llguidance's own threads."""
    import llguidance

    executor = llguidance.LLExecutor(num_threads=num_threads)
    masks = np.zeros((num_rows, num_words(len(grammars.vocabulary.tokens))), dtype=np.int32)
    best = [float("inf")] * 2
    for _ in range(5):
        for index in range(2):
            rows = [grammars.start(FORMS["schema"]) for _ in range(num_rows)]
            brace = grammars.vocabulary.tokens.index(b"{")
            for row in rows:
                row.consume_token(brace)
            start = time.perf_counter()
            if index:
                places = [(row, place) for place, row in enumerate(rows)]
                executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], num_rows)
            else:
                for row, mask in zip(rows, masks, strict=True):
                    row.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            best[index] = min(best[index], time.perf_counter() - start)
    one, many = (1e6 * seconds / num_rows for seconds in best)
    print(f"  {num_rows} rows: {one:.0f} us for each, one by one; {many:.0f} us with {num_threads} threads")


if __name__ == "__main__":
    main()
