"""Stop strings: the same text and match however the text is split, against a plain search of the whole text."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.tokenizer import StopChecker

QUICK = settings(derandomize=True, deadline=None, max_examples=400)
LETTERS = st.text("ab", max_size=14) | st.text("ab🙂é\n", max_size=14)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5) | st.text("ab🙂é\n", min_size=1, max_size=4), max_size=5)


def search(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The definition: the smallest start wins, then the order in the list."""
    found = [(text.find(item), index) for index, item in enumerate(stop) if item in text]
    if not found:
        return text, None
    start, index = min(found)
    return text[:start] + (stop[index] if include else ""), stop[index]


def stream(pieces: list[str], stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    checker = StopChecker(stop, include)
    shown = ""
    for piece in pieces:
        text, matched = checker.append(piece)
        shown += text
        assert matched == checker.matched
        if matched is not None:
            assert checker.append("more text") == ("", matched)
            break
    return shown + checker.finish(), checker.matched


@QUICK
@given(LETTERS, STOPS, st.lists(st.integers(0, 14), max_size=6), st.booleans())
def test_any_split_gives_the_same(text: str, stop: list[str], cuts: list[int], include: bool) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[low:high] for low, high in pairwise(edges)]
    expected = search(text, tuple(stop), include)
    for split in (pieces, list(text), [text]):
        assert stream(split, tuple(stop), include) == expected


@QUICK
@given(LETTERS, STOPS)
def test_only_what_may_still_match_is_held_back(text: str, stop: list[str]) -> None:
    checker = StopChecker(tuple(stop))
    taken = shown = ""
    for character in text:
        new, matched = checker.append(character)
        if matched is not None:
            return
        taken, shown = taken + character, shown + new
        suffixes = [taken[start:] for start in range(len(taken) + 1)]
        held = next(suffix for suffix in suffixes if any(item.startswith(suffix) for item in stop) or not suffix)
        assert shown + held == taken


@pytest.mark.parametrize(
    ("stop", "text", "shown", "matched"),
    [
        (("ab", "abc"), "xabc", "x", "ab"),
        (("abc", "ab"), "xabc", "x", "abc"),
        (("abc", "ab"), "xabd", "x", "ab"),
        (("b", "abc"), "abc", "", "abc"),
        (("b", "abc"), "abd", "a", "b"),
        (("b", "abc"), "ab", "a", "b"),
        (("\n\n", "User:"), "Hi.\n\nUser: yes", "Hi.", "\n\n"),
        ((), "anything", "anything", None),
    ],
)
def test_which_match_wins(stop: tuple[str, ...], text: str, shown: str, matched: str | None) -> None:
    assert stream(list(text), stop, False) == (shown, matched)
    assert stream([text], stop, True) == (shown + (matched or ""), matched)


def test_a_match_is_reported_at_once_when_nothing_can_beat_it() -> None:
    checker = StopChecker(("END", "ENDING"), include_stop_str_in_output=True)
    assert checker.append("the EN") == ("the ", None)
    assert checker.append("D") == ("END", "END")


def test_time_is_linear_in_text_and_stop_strings() -> None:
    """Text made to restart a long stop string over and over; quadratic work would take minutes."""
    stop = ("a" * 20_000 + "b", "a" * 19_999 + "c")
    start = time.monotonic()
    checker = StopChecker(stop)
    shown = [checker.append("a")[0] for _ in range(100_000)]
    assert sum(map(len, shown)) + len(checker.finish()) == 100_000
    assert time.monotonic() - start < 10
