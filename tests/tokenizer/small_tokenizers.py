"""Training of small tokenizers, and texts that are hard for them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

KINDS = ("json", "gpt2", "opt", "llama", "legacy", "llama_json")

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "hello world, hello there; it's a test of the tokenizer!",
    "def f(x):\n    return x + 1\n\n    # four  spaces",
    "你好世界 日本語のテキスト",
    "naïve café, déjà vu 👩‍👩‍👧 🙂🙂",
    "aaaa aaa aa a    b     c",
] * 20

TEXTS = [
    "",
    " ",
    "   three",
    "hello world",
    " hello",
    "hello  there ",
    "x\n\ny\tz\r\n",
    "你好 world 🙂",
    "👩‍👩‍👧 family e\u0301 combining",
    "aaaaaaa aaaaa",
    "\u2581meta",
    "<s> not </s> quite <unk>",
    "\u0000\u0007",
    "naïve café",
]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def train_byte_level(special: list[str]) -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def train_sentencepiece(**options: Any) -> bytes:
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **(defaults | options))
    return model.getvalue()
