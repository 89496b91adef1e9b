"""Token counts and bad words against their definitions, token by token."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.sampling.history import BadWords, TokenCounts

IDS = st.lists(st.integers(0, 300), max_size=400)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(IDS, IDS, IDS)
def test_counts_are_those_of_the_whole_history(prompt: list[int], output: list[int], later: list[int]) -> None:
    counts = TokenCounts(prompt, output)
    for token_id in later:
        counts.append(token_id)
    got = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    said = Counter(output + later)
    assert got == {token_id: said[token_id] for token_id in {*prompt, *output, *later}}
    assert len(got) == len(counts.token_ids)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=6), st.lists(st.integers(0, 2), max_size=8))
def test_a_ban_is_what_would_complete_a_bad_word(sequences: list[list[int]], output: list[int]) -> None:
    banned = set(BadWords(sequences).banned_ids(output))
    for token_id in range(3):
        text = [*output, token_id]
        completes = any(words and text[-len(words) :] == words for words in sequences)
        assert (token_id in banned) == completes
