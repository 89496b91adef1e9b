"""Ids and text against Hugging Face's tokenizers and against SentencePiece itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from quire.core.errors import PlanError, RequestError
from quire.core.model_files import TOKENIZER_FILES
from quire.tokenizer import Tokenizer
from tests.tokenizer.small_tokenizers import KINDS, TEXTS, train_sentencepiece, write_json

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
PROSE = st.lists(st.sampled_from([*TEXTS, "<s>", "</s>", "<|im_end|>", "<extra>", "WORD", "é", "\n"])).map("".join)


def hugging_face(kind: str, directory: Path) -> Any:
    """Load a directory with transformers; it cannot read `tokenizer.model` without protobuf, so that is taken apart."""
    from transformers import GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    if kind in ("json", "llama_json"):
        return PreTrainedTokenizerFast.from_pretrained(directory)
    if kind in ("gpt2", "opt"):
        return GPT2Tokenizer.from_pretrained(directory)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    scores = {piece: processor.get_score(i) for piece, i in vocabulary.items()}
    merges = generate_merges(vocabulary, scores)
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=kind == "legacy", add_bos_token=True)


HUGGING_FACE_KINDS = ("json", "gpt2", "opt", "llama", "llama_json")


@pytest.fixture(scope="session")
def references(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {kind: hugging_face(kind, request.getfixturevalue(f"{kind}_dir")) for kind in KINDS}


@pytest.mark.parametrize("kind", HUGGING_FACE_KINDS)
def test_ids_and_text_equal_hugging_face(
    kind: str, tokenizers_by_kind: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    ours, theirs = tokenizers_by_kind[kind], references[kind]

    @QUICK
    @given(PROSE | st.text())
    def check(text: str) -> None:
        if kind == "llama":
            # transformers 5 puts no dummy space before a text that starts with a space; its earlier LlamaTokenizer
            # and SentencePiece do, and so do we (see test_leading_spaces_are_those_of_sentencepiece).
            text = text.lstrip(" \u2581")
        for add in (True, False):
            ids = ours.encode(text, add_special_tokens=add)
            assert ids == theirs.encode(text, add_special_tokens=add)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    assert set(theirs.all_special_ids) <= set(ours.all_special_ids)
    assert ours.vocab_size == len(theirs)


def test_gpt2_adds_nothing_and_opt_adds_its_end_token(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    gpt2, opt = tokenizers_by_kind["gpt2"], tokenizers_by_kind["opt"]
    assert gpt2.encode("hello") == gpt2.encode("hello", add_special_tokens=False)
    assert gpt2.encode("<|endoftext|>") == [gpt2.eos_token_id] == [0]
    assert opt.encode("hello") == [2, *opt.encode("hello", add_special_tokens=False)]
    assert opt.encode("a<extra>")[-1] == opt.vocab_size - 1


def test_truncation_and_padding_in_the_file_are_ignored(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["json"]
    assert len(tokenizer.encode("the quick brown fox " * 10)) > 20
    assert tokenizer.encode("", add_special_tokens=False) == []


@QUICK
@given(text=PROSE | st.text())
def test_legacy_ids_are_those_of_sentencepiece_between_special_tokens(
    text: str, tokenizers_by_kind: dict[str, Tokenizer], sentencepiece_model: bytes
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    text = text.replace("WORD", "")
    expected, rest = [1], text
    while rest:
        at, token = min((rest.find(token), token) for token in ids if token in rest) if any(
            token in rest for token in ids
        ) else (len(rest), "")  # fmt: skip
        expected += processor.encode(rest[:at]) if at else []
        expected += [ids[token]] if token else []
        rest = rest[at + len(token) :]
    assert tokenizers_by_kind["legacy"].encode(text) == expected


@pytest.mark.parametrize("text", [" ", "  hello", " hello", "\u2581hello", "hello"])
def test_leading_spaces_are_those_of_sentencepiece(
    text: str, tokenizers_by_kind: dict[str, Tokenizer], sentencepiece_model: bytes
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    for kind in ("llama", "legacy"):
        assert tokenizers_by_kind[kind].encode(text) == [1, *processor.encode(text)]
        assert tokenizers_by_kind[kind].decode(processor.encode(text)) == text.replace("\u2581", " ")


def test_only_the_legacy_way_puts_a_space_after_special_tokens(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    legacy, modern = tokenizers_by_kind["legacy"], tokenizers_by_kind["llama"]
    assert legacy.encode("<s>hello", add_special_tokens=False) == [1, *legacy.encode("hello", add_special_tokens=False)]
    ids = modern.encode("<s>hello", add_special_tokens=False)
    assert ids[0] == 1 and modern.decode(ids, skip_special_tokens=False) == "<s>hello"
    assert legacy.decode(legacy.encode("a</s>b", add_special_tokens=False), skip_special_tokens=False) == "a</s> b"


def test_added_tokens_of_sentencepiece_swallow_spaces_and_stand_alone(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["legacy"]
    tool, word = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert encode("hello  <|tool|> \n there") == [*encode("hello"), tool, *encode("there")]
    assert encode("<|tool|>  ") == [tool]
    assert word in encode("WORD") and word in encode("a WORD b")
    assert word not in encode("aWORD") and word not in encode("WORDS")
    assert tokenizer.decode([tool, *encode("hi")]) == "hi"
    assert tokenizer.decode([word]) == "WORD"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_every_normalization_is_left_to_sentencepiece(tmp_path: Path, model_type: str) -> None:
    model = train_sentencepiece(
        model_type=model_type, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, vocab_size=400
    )
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer.from_directory(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("ﬁne   text ", " ① hello", "你好"):
        assert tokenizer.encode(text) == [1, *processor.encode(text)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives_a_round_trip(kind: str, tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind[kind]

    @QUICK
    @given(st.text().filter(lambda text: "\u2581" not in text))
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        joined = b"".join(tokenizer.token_bytes(token_id) for token_id in ids).decode()
        assert joined in (text, " " + text)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_cover_every_byte_and_text_is_readable(kind: str, tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind[kind]
    found = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    assert {bytes([byte]) for byte in range(256)} <= set(found)
    assert [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)] == [
        item.decode(errors="replace") for item in found
    ]
    assert b" the" in found
    assert not any("\u2581" in item.decode(errors="replace") for item in found)
    for outside in (-1, tokenizer.vocab_size, tokenizer.vocab_size + 1000):
        assert tokenizer.token_bytes(outside) == b"" and tokenizer.decode([outside]) == ""


def test_added_tokens_outside_ascii_keep_their_text(tmp_path: Path, gpt2_dir: Path) -> None:
    shutil.copytree(gpt2_dir, tmp_path, dirs_exist_ok=True)
    size = Tokenizer.from_directory(gpt2_dir).vocab_size
    write_json(tmp_path / "added_tokens.json", {"<é>": size, "日 本": size + 1})
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = tokenizer.encode("a<é>日 本b")
    assert ids[1:3] == [size, size + 1]
    assert tokenizer.decode(ids) == "a<é>日 本b"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["\ud800", "a\udfffb", "🙂"[:1] + "\ud83d", None, 5, b"bytes"])
def test_broken_prompts_are_request_errors(kind: str, bad: object, tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    with pytest.raises(RequestError, match="prompt: expected"):
        tokenizers_by_kind[kind].encode(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["wordpiece", "metaspace", "suffix"])
def test_other_decoders_are_the_librarys(decoder: str, tmp_path: Path) -> None:
    vocabulary = ["[UNK]", "[A]", "[B]", "hello", "world", "##ing", "\u2581hello", "\u2581", "lo</w>", "hel", "!"]
    library = Library(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[A]", "[B]"])
    choices = {"wordpiece": decoders.WordPiece(), "metaspace": decoders.Metaspace(), "suffix": decoders.BPEDecoder()}
    library.decoder = choices[decoder]
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    for ids in ([3, 4, 5], [6, 7, 6], [9, 8, 9, 8], [3, 1, 2, 4], []):
        assert tokenizer.decode(ids, skip_special_tokens=False) == library.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids) == library.decode(ids)
    if decoder == "wordpiece":
        assert tokenizer.decode([3, 1, 2, 4], False) == "hello [A] [B] world"
        assert tokenizer.decode([3, 1, 2, 4], False, spaces_between_special_tokens=False) == "hello [A][B] world"
        assert tokenizer.token_bytes(3) == b" hello" and tokenizer.token_bytes(5) == b"ing"


def test_listed_files_are_enough_to_load_elsewhere(opt_dir: Path, llama_dir: Path, tmp_path: Path) -> None:
    for directory in (opt_dir, llama_dir):
        (directory / "pytorch_model.bin").write_bytes(b"not copied")
        target = tmp_path / directory.name
        for path in (path for pattern in TOKENIZER_FILES for path in directory.glob(pattern)):
            copy = target / path.relative_to(directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        assert "pytorch_model.bin" not in {path.name for path in target.iterdir()}
        moved, original = Tokenizer.from_directory(target), Tokenizer.from_directory(directory)
        assert [moved.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_missing_files_say_what_was_expected(tmp_path: Path, gpt2_dir: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere.*no such directory"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    with pytest.raises(PlanError, match=r"expected tokenizer.json, vocab.json with merges.txt, or tokenizer.model"):
        Tokenizer.from_directory(tmp_path)
    shutil.copy(gpt2_dir / "vocab.json", tmp_path)
    with pytest.raises(PlanError, match=r"merges.txt: expected the merges"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[1]"),
        ("tokenizer.json", b"\xff\xfe"),
        ("vocab.json", b'{"a": 0'),
        ("vocab.json", b'{"a": "x"}'),
        ("vocab.json", b"[]"),
        ("vocab.json", b"[" * 100_000),
        ("merges.txt", b"#version: 0.2\na b c\n"),
        ("merges.txt", b"#version: 0.2\nqqq zzz\n"),
        ("tokenizer_config.json", b"nonsense"),
        ("tokenizer_config.json", b'{"add_bos_token": "yes"}'),
        ("tokenizer_config.json", b'{"add_bos_token": true, "bos_token": "<nowhere-to-be-found>", "chat_template": 5}'),
        ("tokenizer_config.json", b'{"bos_token": 5}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9999": {"content": "<far>"}}}'),
        ("tokenizer_config.json", b'{"additional_special_tokens": "abc"}'),
        ("added_tokens.json", b'{"<x>": "1"}'),
        ("special_tokens_map.json", b'{"bos_token": {"lstrip": true}}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path, gpt2_dir: Path) -> None:
    shutil.copytree(gpt2_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PlanError, match=r": expected .+, got .+\. Download or copy") as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -7])
def test_damaged_sentencepiece_models_are_named(cut: int, tmp_path: Path, sentencepiece_model: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model[:cut])
    with pytest.raises(PlanError, match=r"tokenizer.model: expected"):
        Tokenizer.from_directory(tmp_path)


def test_a_tokenizer_json_with_other_ids_than_its_config_warns(
    json_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(json_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((json_dir / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"5000": {"content": "<|end|>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", config)
    assert Tokenizer.from_directory(tmp_path).eos_token_id == 1
    assert "5000" in caplog.text
