"""Streamed text equals decoded text, for every split, prompt and kind of tokenizer, broken UTF-8 included."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from quire.tokenizer import IncrementalDetokenizer, Tokenizer
from tests.tokenizer.small_tokenizers import KINDS

QUICK = settings(derandomize=True, deadline=None, max_examples=80)
TEXTS = ["hello world", " the", "👩‍👩‍👧", "🙂", "你好 日本語", "e\u0301\u0302", "\ufffd", "  ", "\n", "a\u200db"]


def pieces_of(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """Split ids at the given places."""
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[low:high] for low, high in pairwise(edges)]


def streamed(tokenizer: Tokenizer, ids: list[int], cuts: list[int], **options: object) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)  # type: ignore[arg-type]
    return "".join([*map(detokenizer.append, pieces_of(ids, cuts)), detokenizer.finish()])


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of text, ids at random (mostly broken UTF-8), and mixes, with ids outside the vocabulary."""
    anything = st.integers(0, tokenizer.vocab_size + 3)
    single_bytes = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
    text = st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text))
    part = text | st.lists(anything, max_size=6) | st.lists(st.sampled_from(single_bytes), max_size=8)
    return st.lists(part, max_size=6).map(lambda parts: list(chain.from_iterable(parts)))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_decoded_text(kind: str, skip: bool, tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind[kind]

    @QUICK
    @given(ids_of(tokenizer), st.lists(st.integers(0, 100), max_size=10))
    def check(ids: list[int], cuts: list[int]) -> None:
        assert streamed(tokenizer, ids, cuts, skip_special_tokens=skip) == tokenizer.decode(ids, skip)
        assert streamed(tokenizer, ids, list(range(len(ids))), skip_special_tokens=skip) == tokenizer.decode(ids, skip)

    check()


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_what_the_prompt_lacks(
    kind: str, skip: bool, tokenizers_by_kind: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers_by_kind[kind]

    @QUICK
    @given(ids_of(tokenizer), ids_of(tokenizer))
    def check(prompt: list[int], ids: list[int]) -> None:
        text = streamed(tokenizer, ids, list(range(len(ids))), skip_special_tokens=skip, prompt_token_ids=prompt)
        whole, before = tokenizer.decode(prompt + ids, skip), tokenizer.decode(prompt, skip)
        assert whole.endswith(text)
        # The prompt's own text comes first; only the U+FFFD of a character it leaves open may turn into that character.
        shown = whole[: len(whole) - len(text)]
        assert before in (shown, shown + "\ufffd")

    check()


@pytest.mark.parametrize("kind", ["json", "legacy"])
def test_a_prompt_may_end_inside_a_character(kind: str, tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind[kind]
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    text = "aé你🙂"
    ids = [single[bytes([byte])] for byte in text.encode()]
    for cut in range(1, len(ids)):
        whole_characters = text.encode()[:cut].decode(errors="ignore")
        continuation = streamed(tokenizer, ids[cut:], [], prompt_token_ids=ids[:cut])
        assert whole_characters + continuation == text


def test_the_leading_space_of_a_continuation(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    for kind in ("llama", "legacy", "llama_json"):
        tokenizer = tokenizers_by_kind[kind]
        prompt, ids = tokenizer.encode("hello"), tokenizer.encode("the", add_special_tokens=False)
        assert streamed(tokenizer, ids, [], prompt_token_ids=prompt) == " the"
        assert streamed(tokenizer, ids, []) == "the"
        assert streamed(tokenizer, ids, [], prompt_token_ids=[1]) == "the"
        assert streamed(tokenizer, ids, [], prompt_token_ids=[1], skip_special_tokens=False) == " the"


def test_a_character_shows_when_its_last_byte_is_there(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["json"]
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [single[bytes([byte])] for byte in "é🙂".encode()]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.append([i]) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert detokenizer.finish() == ""
    assert detokenizer.append(ids[2:5]) == "" and detokenizer.finish() == "\ufffd"


def test_valid_characters_survive_broken_neighbours(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["llama"]
    single = {tokenizer.token_bytes(i): i for i in range(3, 259)}
    ids = [single[bytes([byte])] for byte in "你".encode() + b"\xff"]
    assert tokenizer.decode(ids) == "你\ufffd"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Metaspace(), decoders.BPEDecoder(), None])
def test_other_decoders_stream_through_a_window(decoder: object, tmp_path: Path) -> None:
    vocabulary = ["[UNK]", "[A]", "[B]", "hello", "world", "##ing", "\u2581hello", "\u2581", "lo</w>", "hel", "'", "s"]
    vocabulary += ["\ufffd", "##\ufffd", "don", "n't", "\u2581\u2581", "."]
    library = Library(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    library.add_special_tokens(["[A]", "[B]"])
    library.decoder = decoder  # type: ignore[assignment]
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids_strategy = st.lists(st.integers(0, len(vocabulary) - 1), max_size=20)

    @QUICK
    @given(ids_strategy, st.lists(st.integers(0, 100), max_size=10), st.booleans(), st.booleans())
    def check(ids: list[int], cuts: list[int], skip: bool, spaces: bool) -> None:
        options = {"skip_special_tokens": skip, "spaces_between_special_tokens": spaces}
        assert streamed(tokenizer, ids, cuts, **options) == tokenizer.decode(ids, **options)

    check()


def test_a_window_holds_incomplete_characters_back(tmp_path: Path) -> None:
    vocabulary = ["[UNK]", "a", "b", "<0xE4>", "<0xBD>", "<0xA0>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    library = Library(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = [1, 3, 4, 5, 2, 6, 7, 8, 9, 3, 4, 5, 1, 1]
    assert tokenizer.decode(ids) == "a你b🙂你aa"
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.append([i]) for i in ids] == [*"a", "", "", *"你b", "", "", "", "🙂", "", "", *"你aa"]
    assert detokenizer.append([3, 4]) == "" and set(detokenizer.finish()) == {"\ufffd"}


def test_the_work_per_token_does_not_grow(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["json"]
    read: list[int] = []

    class Prompt(list[int]):
        def __reversed__(self):  # type: ignore[no-untyped-def]
            for token_id in super().__reversed__():
                read.append(token_id)
                yield token_id

    IncrementalDetokenizer(tokenizer, prompt_token_ids=Prompt(tokenizer.encode("the quick brown fox " * 500)))
    assert 0 < len(read) <= 16
