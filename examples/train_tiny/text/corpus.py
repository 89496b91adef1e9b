"""The corpus: an endless stream of documents from one seed, split into training and held-out text by content.

A document is held out when the checksum of its text says so, whatever the seed: no held-out document can ever be
trained on, not even a short one that the generator writes twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from examples.train_tiny.text.chat_format import BOS, EOS
from examples.train_tiny.text.chats import chat
from examples.train_tiny.text.essays import essay, introduction, letter, sights
from examples.train_tiny.text.facts import facts, sums
from examples.train_tiny.text.grammar import Draw
from examples.train_tiny.text.stories import long_story, story

HELD_OUT_ONE_IN = 50

# domain -> (share of the documents, its writer)
DOMAINS: dict[str, tuple[float, Callable[[Draw], str]]] = {
    "story": (0.24, story),
    "long_story": (0.02, long_story),
    "essay": (0.17, essay),
    "introduction": (0.07, introduction),
    "letter": (0.04, letter),
    "sights": (0.05, sights),
    "facts": (0.13, facts),
    "sums": (0.08, sums),
    "chat": (0.20, chat),
}


def is_held_out(document: str) -> bool:
    """Whether this document belongs to the held-out set, by the CRC-32 of its text."""
    return zlib.crc32(document.encode()) % HELD_OUT_ONE_IN == 0


def write_document(domain: str, draw: Draw) -> str:
    """One document of a domain, from `BOS` to `EOS` (a chat ends with its last turn). `draw` is mutated."""
    text = DOMAINS[domain][1](draw)
    return text if domain == "chat" else f"{BOS}{text}{EOS}"


def _pick_domain(draw: Draw) -> str:
    point = draw.number(0, 9999) / 10000
    for domain, (share, _) in DOMAINS.items():
        point -= share
        if point < 0:
            return domain
    return "chat"


def training_documents(seed: int) -> Iterator[str]:
    """Documents without end, in the shares of `DOMAINS`, none of them held out.

    Example:
        >>> next(training_documents(0)) == next(training_documents(0))
        True
    """
    draw = Draw(seed)
    while True:
        document = write_document(_pick_domain(draw), draw)
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
