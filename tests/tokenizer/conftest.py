"""Small tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, processors, trainers

from quire.tokenizer import Tokenizer
from tests.tokenizer.small_tokenizers import CORPUS, KINDS, train_byte_level, train_sentencepiece, write_json


@pytest.fixture(scope="session")
def json_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3 style: byte-level `tokenizer.json` whose post-processor adds BOS; more tokens in its config."""
    path = tmp_path_factory.mktemp("json")
    library = train_byte_level(["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"])
    library.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    library.enable_truncation(8)
    library.enable_padding(length=8)
    library.save(str(path / "tokenizer.json"))
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin|>",
            "eos_token": {"__type": "AddedToken", "content": "<|end|>", "normalized": False},
            "pad_token": None,
            "clean_up_tokenization_spaces": True,
        },
    )
    return path


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 style: `vocab.json` and `merges.txt`, and a config that names no special token."""
    path = tmp_path_factory.mktemp("gpt2")
    train_byte_level(["<|endoftext|>"]).model.save(str(path))
    write_json(path / "tokenizer_config.json", {"model_max_length": 1024})
    return path


@pytest.fixture(scope="session")
def opt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT style: as GPT-2, but `</s>` is put in front, and one token was added later."""
    path = tmp_path_factory.mktemp("opt")
    library = train_byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    library.model.save(str(path))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    end = {"content": "</s>", **flags}
    named = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": {"content": "<pad>", **flags}}
    write_json(
        path / "tokenizer_config.json",
        {name: {**token, "__type": "AddedToken"} for name, token in named.items()}
        | {"errors": "replace", "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"},
    )
    write_json(path / "special_tokens_map.json", named)
    write_json(path / "added_tokens.json", {"<extra>": library.get_vocab_size()})
    return path


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A Llama 2 style model: BPE with byte fallback, no normalization."""
    return train_sentencepiece()


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes) -> Path:
    """Llama 2 style: `tokenizer.model` with `"legacy": false`."""
    path = tmp_path_factory.mktemp("llama")
    (path / "tokenizer.model").write_bytes(sentencepiece_model)
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )
    return path


@pytest.fixture(scope="session")
def legacy_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes) -> Path:
    """Mistral 7B style: `tokenizer.model` in the legacy way, with tokens added behind the vocabulary."""
    path = tmp_path_factory.mktemp("legacy")
    (path / "tokenizer.model").write_bytes(sentencepiece_model)
    size = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model).vocab_size()
    added = {
        0: {"content": "<unk>", "special": True},
        1: {"content": "<s>", "special": True},
        2: {"content": "</s>", "special": True},
        size: {"content": "<|tool|>", "special": True, "rstrip": True, "lstrip": True},
        size + 1: {"content": "WORD", "special": False, "single_word": True},
    }
    write_json(
        path / "tokenizer_config.json",
        {"legacy": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": added},
    )
    return path


@pytest.fixture(scope="session")
def llama_json_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 2's `tokenizer.json`: BPE with byte fallback behind a metaspace normalizer."""
    path = tmp_path_factory.mktemp("llama_json")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library = Library(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The bytes are trained as special tokens to get their ids, then made plain pieces again.
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, limit_alphabet=40, max_token_length=8, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    content = json.loads(library.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    write_json(path / "tokenizer.json", content)
    write_json(path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    return path


@pytest.fixture(scope="session")
def tokenizers_by_kind(request: pytest.FixtureRequest) -> dict[str, Tokenizer]:
    """One loaded tokenizer of each kind."""
    return {kind: Tokenizer.from_directory(request.getfixturevalue(f"{kind}_dir")) for kind in KINDS}
