"""The corpus: an endless stream of documents from one seed, split into training and held-out text by content.

A document is held out when the checksum of its text says so, whatever the seed: no held-out document can ever be
trained on, not even a short one that the generator writes twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from examples.train_tiny.text.chat_format import BOS, EOS
from examples.train_tiny.text.chats import chat, sum_chat
from examples.train_tiny.text.essays import essay, introduction, letter, sights
from examples.train_tiny.text.facts import facts, small_sums, sums
from examples.train_tiny.text.grammar import Draw
from examples.train_tiny.text.stories import long_story, story

HELD_OUT_ONE_IN = 50

DOMAINS: dict[str, Callable[[Draw], str]] = {
    "story": story,
    "long_story": long_story,
    "essay": essay,
    "introduction": introduction,
    "letter": letter,
    "sights": sights,
    "facts": facts,
    "sums": sums,
    "chat": chat,
    "small_sums": small_sums,
    "sum_chat": sum_chat,
}
# Shares of the documents, in the order of DOMAINS. "broad" teaches language; "exact" teaches what has one right answer,
# which a model this small takes up late; "sums" adds those of one digit.
MIXTURES: dict[str, tuple[float, ...]] = {
    "broad": (0.24, 0.02, 0.17, 0.07, 0.04, 0.05, 0.13, 0.08, 0.20, 0.0, 0.0),
    "exact": (0.10, 0.015, 0.06, 0.06, 0.02, 0.03, 0.205, 0.26, 0.25, 0.0, 0.0),
    "sums": (0.05, 0.008, 0.062, 0.083, 0.012, 0.019, 0.165, 0.037, 0.19, 0.31, 0.064),
}


def is_held_out(document: str) -> bool:
    """Whether this document belongs to the held-out set, by the CRC-32 of its text."""
    return zlib.crc32(document.encode()) % HELD_OUT_ONE_IN == 0


def write_document(domain: str, draw: Draw) -> str:
    """One document of a domain, from `BOS` to `EOS` (a chat ends with its last turn). `draw` is mutated."""
    text = DOMAINS[domain](draw)
    return text if domain.endswith("chat") else f"{BOS}{text}{EOS}"


def _pick_domain(mixture: str, draw: Draw) -> str:
    point = draw.number(0, 9999) / 10000
    for domain, share in zip(DOMAINS, MIXTURES[mixture], strict=True):
        point -= share
        if point < 0:
            return domain
    return "chat"


def training_documents(seed: int, mixture: str = "broad") -> Iterator[str]:
    """Documents without end, in the shares of `MIXTURES[mixture]`, none of them held out.

    Example:
        >>> next(training_documents(0)) == next(training_documents(0))
        True
    """
    draw = Draw(seed)
    while True:
        document = write_document(_pick_domain(mixture, draw), draw)
        if not is_held_out(document):
            yield document


def held_out_documents(domain: str, seed: int) -> Iterator[str]:
    """Held-out documents of one domain, without end and without repeats."""
    draw = Draw(seed)
    seen: set[str] = set()
    while True:
        document = write_document(domain, draw)
        if is_held_out(document) and document not in seen:
            seen.add(document)
            yield document
