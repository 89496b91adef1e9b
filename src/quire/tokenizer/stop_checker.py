"""`StopChecker`: finds stop strings in text that arrives in pieces, and says how much of it may be shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    """A prefix of some stop strings.

    Attributes:
        depth: Its length in characters.
        next: States of the prefixes that are one character longer.
        fail: The longest proper suffix of it that is a prefix too; the empty prefix has none.
        match: The longest stop string that it ends with: (length, index in the list).
        first_beyond: The smallest index of the stop strings that go on from here.
    """

    depth: int
    next: dict[str, _State] = field(default_factory=dict)
    fail: _State | None = None
    match: tuple[int, int] | None = None
    first_beyond: int | None = None


class StopChecker:
    """Watches the text of one sample for stop strings.

    The match that starts first in the text wins; of several that start together, the one that comes first in `stop`.
    What is shown and what matches is the same however the text is split. The automaton of Aho and Corasick ("Efficient
    string matching", CACM 1975) takes constant time per character; each call also copies the text that is held back.

    Args:
        stop: Non-empty stop strings; none means that all text passes.
        include_stop_str_in_output: Whether the shown text ends with the stop string or before it.

    Attributes:
        matched: The stop string that was found, None so far.

    Example:
        >>> checker = StopChecker(("END",), include_stop_str_in_output=False)
        >>> checker.append("the E"), checker.append("ND of it")
        (('the ', None), ('', 'END'))
    """

    def __init__(self, stop: Sequence[str], include_stop_str_in_output: bool = False) -> None:
        assert all(stop), "stop strings must not be empty"
        self.matched: str | None = None
        self._stop = tuple(stop)
        self._is_included = include_stop_str_in_output
        self._root = self._state = _automaton(self._stop)
        self._held = ""
        self._shown = 0  # Characters of the text before `_held`; all positions count from the start of the text.
        self._end = 0  # Characters that went through the automaton.
        self._best: tuple[int, int] | None = None  # The match to beat: (start, index in the list).

    def append(self, text: str) -> tuple[str, str | None]:
        """Take the next piece of text.

        Returns:
            The text that is safe to show now, and the stop string once one is found. Held back is only what may still
            become part of a stop string. After a match everything is discarded.
        """
        if self.matched is not None:
            return "", self.matched
        if not self._stop:
            return text, None
        self._held += text
        for character in text:
            self._advance(character)
            if self._best is not None and not self._can_be_beaten():
                return self._settle(), self.matched
        return self._release(self._end - self._state.depth), None

    def finish(self) -> str:
        """End the text and return what was held back; a match that waited for a better one counts now (`matched`)."""
        if self.matched is None and self._best is not None:
            return self._settle()
        return self._release(self._end)

    def _advance(self, character: str) -> None:
        """Follow one character, and note a match that beats the best one."""
        state: _State | None = self._state
        while state is not None and character not in state.next:
            state = state.fail
        self._state = self._root if state is None else state.next[character]
        self._end += 1
        if self._state.match is not None:
            length, index = self._state.match
            found = (self._end - length, index)
            self._best = found if self._best is None else min(self._best, found)

    def _can_be_beaten(self) -> bool:
        """Tell whether a stop string under way starts before the best match, or with it and earlier in the list."""
        assert self._best is not None, "there is a match"
        start = self._end - self._state.depth
        beyond = self._state.first_beyond
        return beyond is not None and (start, beyond) < self._best

    def _settle(self) -> str:
        """Make the best match final and return the last text to show."""
        assert self._best is not None, "there is a match"
        start, index = self._best
        self.matched = self._stop[index]
        shown = self._release(start)
        self._held = ""
        return shown + self.matched if self._is_included else shown

    def _release(self, position: int) -> str:
        """Return the held text before `position`."""
        cut = position - self._shown
        shown, self._held = self._held[:cut], self._held[cut:]
        self._shown = position
        return shown


def _automaton(stop: tuple[str, ...]) -> _State:
    """Build the automaton: its states are the prefixes of all stop strings."""
    root = _State(0)
    for index, text in enumerate(stop):
        state = root
        for character in text:
            state.first_beyond = index if state.first_beyond is None else state.first_beyond
            state = state.next.setdefault(character, _State(state.depth + 1))
        state.match = state.match or (state.depth, index)
    _link(root)
    return root


def _link(root: _State) -> None:
    """Set `fail` of all states, shortest first, and inherit the matches that end with a shorter suffix."""
    queue = deque([root])
    while queue:
        parent = queue.popleft()
        for character, state in parent.next.items():
            fail = parent.fail
            while fail is not None and character not in fail.next:
                fail = fail.fail
            state.fail = root if fail is None else fail.next[character]
            state.match = state.match or state.fail.match
            queue.append(state)
