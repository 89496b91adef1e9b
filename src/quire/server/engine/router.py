"""`Router`: which of several engines a request goes to: where the least is left to be done before it, and for it.

What an engine has is guessed by what was sent there: it keeps the prefixes of its prompts for as long as its KV cache
would, and forgets them with its process. Integers only; it asks nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from quire.core.request import Request

# Most answers end long before max_tokens; a request counts as many tokens as an answer has on average, by ShareGPT
# (docs/bench-serve.md).
_ANSWER_TOKENS = 338


def prefix_keys(token_ids: Sequence[int], block_size: int, salt: str) -> list[int]:
    """Return a key for each full block of a prompt, which depends on all tokens up to its end.

    A collision would send a request to an engine that does not have its prefix, which costs time and nothing else.

    Args:
        token_ids: The prompt.
        block_size: Tokens in a block.
        salt: Prefixes are found again under the same salt.
    """
    keys, key = [], hash(salt)
    for end in range(block_size, len(token_ids) + 1, block_size):
        key = hash((key, *token_ids[end - block_size : end]))
        keys.append(key)
    return keys


@dataclass(slots=True)
class _Engine:
    """What is known of an engine.

    Attributes:
        max_blocks: As many keys are remembered as its KV cache has blocks.
        keys: Of blocks that it should have; those unused for the longest time come first.
        num_tokens: To be computed for the requests that are unfinished there.
        last_turn: When it was chosen last.
    """

    max_blocks: int
    keys: OrderedDict[int, None] = field(default_factory=OrderedDict)
    num_tokens: int = 0
    last_turn: int = 0

    def num_known(self, keys: Sequence[int]) -> int:
        return sum(1 for _ in takewhile(self.keys.__contains__, keys))

    def remember(self, keys: Sequence[int]) -> None:
        for key in reversed(keys):  # the first block of a prompt goes last: without it, the others cannot be found
            self.keys[key] = None
            self.keys.move_to_end(key)
        while len(self.keys) > self.max_blocks:
            self.keys.popitem(last=False)


class Router:
    """Sends each request where it is likely to be done first, counted in tokens that are yet to be computed.

    An engine's load is what its unfinished requests ask for: prompt tokens that it does not have, and answers. A
    request goes where the load and its own prompt's unknown part are the fewest tokens together. So a cached prefix is
    worth exactly the queue that it saves, and no request brings an engine's load above the least one by more than its
    own tokens (Graham's bound of list scheduling).

    Args:
        block_size: Tokens in a block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._engines: dict[int, _Engine] = {}
        self._requests: dict[str, tuple[_Engine, int]] = {}
        self._turn = 0

    def open(self, engine: int, max_blocks: int) -> None:
        """Note that an engine starts, with nothing in its KV cache of so many blocks."""
        self._engines[engine] = _Engine(max_blocks)

    def load(self, engine: int) -> int:
        """Return how many tokens are to be computed for the unfinished requests of an engine."""
        return self._engines[engine].num_tokens

    def choose(self, request: Request, keys: Sequence[int], among: Collection[int]) -> int:
        """Return the engine that a request goes to, and count it there until `end`.

        Args:
            request: Admitted.
            keys: Of its prompt, from `prefix_keys`.
            among: Engines that take requests, at least one; all were opened.
        """
        known = {number: self._engines[number].num_known(keys) * self._block_size for number in among}
        chosen = min(among, key=lambda number: self._rank(number, known[number]))
        engine, params = self._engines[chosen], request.params
        self._turn += 1
        engine.last_turn = self._turn
        engine.remember(keys)
        answer = min(params.max_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)
        added = len(request.prompt_token_ids) - known[chosen] + params.n * answer
        engine.num_tokens += added
        self._requests[request.request_id] = engine, added
        return chosen

    def end(self, request_id: str) -> None:
        """Note that a request has ended, however; nothing if it was never sent anywhere."""
        engine, added = self._requests.pop(request_id, (None, 0))
        if engine is not None:
            engine.num_tokens -= added

    def _rank(self, number: int, num_known_tokens: int) -> tuple[int, int]:
        """Return what orders engines: tokens before the request is done, then whose turn it is."""
        engine = self._engines[number]
        return engine.num_tokens - num_known_tokens, engine.last_turn
