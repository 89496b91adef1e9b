"""What engines are given to do; nothing but the standard library, so that any engine's environment can read it."""

from __future__ import annotations

import random

VOCAB = 32000
Requests = list[tuple[list[int], int]]
"""Prompt ids and how many tokens to generate, of each request."""


def prompt(seed: str, length: int) -> list[int]:
    """Return random ids, the same for the same seed."""
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def decode_requests(repeat: int) -> Requests:
    """Return one request of 128 tokens in and out."""
    return [(prompt(f"decode{repeat}", 128), 128)]


def prefill_requests(repeat: int) -> Requests:
    """Return one request of 1,024 tokens in and one out."""
    return [(prompt(f"prefill{repeat}", 1024), 1)]


def offline_requests(repeat: int) -> Requests:
    """Return 64 requests with prompts and outputs of 32 to 256 tokens; lengths are the same in every repetition."""
    rng = random.Random(1234)
    lengths = [(rng.randint(32, 256), rng.randint(32, 256)) for _ in range(64)]
    return [(prompt(f"offline{repeat}.{i}", a), b) for i, (a, b) in enumerate(lengths)]


def shared_requests(repeat: int) -> Requests:
    """Return 32 requests with 512 common tokens, 32 of their own, and 64 out."""
    common = prompt(f"common{repeat}", 512)
    return [(common + prompt(f"own{repeat}.{i}", 32), 64) for i in range(32)]
