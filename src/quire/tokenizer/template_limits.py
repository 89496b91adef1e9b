"""Limits for templates: a Jinja sandbox that cannot run, write or grow without bound.

Jinja's own sandbox keeps a template away from Python. This one also bounds what an innocent-looking template can cost:
`{% for %}` over a list of lists, a string that doubles in a loop, `"x" * 10**9`. The syntax tree is rewritten so that
every loop step and every value that a template makes passes `Budget`; there is no thread or signal involved, so it
works wherever rendering is called. A single native operation between two checks is bounded by the sizes allowed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from string import Formatter
from types import BuiltinMethodType
from typing import Any

from jinja2 import Environment, TemplateError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARS = 1 << 24
MAX_SECONDS = 5.0
MAX_ITEMS = 1 << 20
_MAX_INTEGER_BITS = 1 << 12
_MAX_ARGUMENT = 1 << 16
_WORK_FACTOR = 4
_LONG_NUMBER = re.compile(r"[0-9]{5}")
# Filters and methods that take a width or count.
_SIZING = frozenset(
    {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes", "tojson", "truncate"}
    | {"wordwrap", "zfill"}
)
# Left out: filters that run regular expressions over text or print Python's view of objects, and a text generator.
_NO_FILTERS = ("urlize", "pprint", "striptags", "xmlattr")
_NO_GLOBALS = ("lipsum",)


class LimitError(TemplateError):
    """A template went over a limit; the message names it."""


class Budget:
    """What one rendering may still cost.

    Args:
        max_chars: Most characters of the result. Text written inside blocks and macros may add up to 4 times this.
        max_seconds: Most wall-clock time.
    """

    def __init__(self, max_chars: int = MAX_CHARS, max_seconds: float = MAX_SECONDS) -> None:
        self.max_chars = max_chars
        self._max_seconds = max_seconds
        self._deadline = time.monotonic() + max_seconds
        self._chars_left = _WORK_FACTOR * max_chars

    def check_time(self) -> None:
        """Raise LimitError when the time is up."""
        if time.monotonic() > self._deadline:
            raise LimitError(f"at most {self._max_seconds:g} s, got a template that takes longer")

    def check_length(self, length: int) -> None:
        """Raise LimitError for a text, list or number of copies that is too long."""
        if length > self.max_chars:
            raise LimitError(f"texts of at most {self.max_chars} characters, got a longer one")

    def spend(self, num_chars: int) -> None:
        """Count characters written anywhere, in blocks and macros too."""
        self._chars_left -= num_chars
        if self._chars_left < 0:
            raise LimitError(f"at most {_WORK_FACTOR * self.max_chars} characters written, got more")

    def check(self, value: Any) -> Any:
        """Return a value that a template made, unless it is too large or the time is up.

        A nested value counts as what it prints, so a list that holds the same list twice counts it twice.
        """
        self.check_time()
        if isinstance(value, (str, bytes)):
            self.check_length(len(value))
        elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise LimitError(f"integers of at most {_MAX_INTEGER_BITS} bits, got a longer one")
        elif isinstance(value, (list, tuple, dict)):
            self._check_items(value)
        return value

    def _check_items(self, value: Any) -> None:
        num_items, num_chars, queue = 0, 0, [value]
        while queue:
            item = queue.pop()
            if isinstance(item, str):
                num_chars += len(item)
            elif isinstance(item, (list, tuple, dict)):
                num_items += len(item)
                if num_items > MAX_ITEMS:
                    raise LimitError(f"lists of at most {MAX_ITEMS} items, got a larger one")
                queue.extend(item)
                queue.extend(item.values() if isinstance(item, dict) else ())
        self.check_length(num_chars)


_budget: ContextVar[Budget] = ContextVar("quire_template_budget")


def render_within(budget: Budget, pieces: Callable[[], Iterable[str]]) -> str:
    """Join the pieces of a template's output while a budget is in force.

    Raises:
        LimitError: The budget is exceeded.
    """
    token = _budget.set(budget)
    try:
        parts, length = [], 0
        for piece in pieces():
            length += len(piece)
            budget.check_length(length)
            budget.check_time()
            parts.append(piece)
        return "".join(parts)
    finally:
        _budget.reset(token)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with `Budget` checks. Compile with `compile_limited`."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        # Constant folding would run a template's arithmetic at compile time, outside any budget.
        super().__init__(optimized=False, finalize=_written, **options)
        for name in _NO_FILTERS:
            del self.filters[name]
        for name in _NO_GLOBALS:
            del self.globals[name]
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        self.filters["quire_loop"] = _loop
        self.filters["quire_check"] = _check

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add or replace a filter, with its results checked."""
        self.filters[name] = _limited_filter(name, function)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator after looking at what it would make."""
        budget = _budget.get()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                    budget.check_length(len(value) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _MAX_INTEGER_BITS:
                raise LimitError(f"integers of at most {_MAX_INTEGER_BITS} bits, got a longer one")
        elif operator == "%" and isinstance(left, str):
            _check_fields(left.replace("{", "(").replace("}", ")"), right if isinstance(right, tuple) else (right,))
        return budget.check(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, macro or method after looking at its arguments, then look at its result."""
        budget = _budget.get()
        budget.check_time()
        method = getattr(__obj, "__wrapped__", __obj)  # The sandbox wraps `str.format`.
        if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, (str, int, bytes)):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            _check_arguments(method.__name__, (method.__self__, *args), kwargs)
        result = budget.check(super().call(__context, __obj, *args, **kwargs))
        budget.spend(len(result) if isinstance(result, str) else 0)
        return result


def compile_limited(environment: LimitedEnvironment, source: str) -> Any:
    """Compile a template whose loops and values are checked, and return it as a `jinja2.Template`.

    Raises:
        TemplateError: The source is not a valid template.
    """
    tree = _Rewriter().visit(environment.parse(source))
    code = environment.compile(tree, filename="<chat template>")
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


class _Rewriter(NodeTransformer):
    """Puts `quire_loop` around what loops run over, and `quire_check` around values that are made in place."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, "quire_loop", nodes.Const(literal))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _filtered(self.generic_visit(node), "quire_check")

    visit_List = visit_Dict = visit_Concat

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "quire_check") if node.ctx == "load" else node


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _loop:
    """The items of a loop, counted; the first argument is what is looped over."""

    def __init__(self, iterable: Iterable[Any], num_literal_chars: int) -> None:
        self._iterable = iterable
        self._num_literal_chars = num_literal_chars

    def __iter__(self) -> Iterator[Any]:
        budget = _budget.get()
        for item in self._iterable:
            budget.check_time()
            budget.spend(self._num_literal_chars)
            yield item

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # Jinja handles the TypeError of a generator.


def _check(value: Any) -> Any:
    return _budget.get().check(value)


@pass_context  # Never called on constants at compile time, where there is no budget.
def _written(_context: Context, value: Any) -> Any:
    """See every value that a template prints."""
    budget = _budget.get()
    budget.check(value)
    budget.spend(len(value) if isinstance(value, str) else 1)
    return value


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with its arguments and result checked; Jinja's markers on the function are kept."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.check_time()
        args = tuple(list(arg) if isinstance(arg, Iterator) and name == "join" else arg for arg in args)
        values = args[1:] if args and isinstance(args[0], (Context, Environment, nodes.EvalContext)) else args
        _check_arguments(name, values, kwargs)
        return budget.check(function(*args, **kwargs))

    limited.__dict__.update(vars(function) if hasattr(function, "__dict__") else {})
    return limited


def _check_arguments(name: str, values: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse calls whose result can be far larger than their arguments; `values` starts with the subject."""
    if not values:
        return
    subject, arguments = values[0], (*values[1:], *kwargs.values())
    if name in _SIZING:
        _check_sizes(name, arguments)
    elif name == "replace" and isinstance(subject, str) and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        _budget.get().check_length(len(subject) + subject.count(old) * len(new))
    elif name == "join" and arguments:
        separator, items = (subject, arguments[0]) if isinstance(subject, str) else (arguments[0], subject)
        _budget.get().check_length(len(str(separator)) * len(items))
    elif name == "format" and isinstance(subject, str):
        _check_fields(subject, arguments)


def _check_sizes(name: str, arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > _MAX_ARGUMENT:
            raise LimitError(f"widths and counts of at most {_MAX_ARGUMENT}, got {argument} for {name}")


def _check_fields(text: str, arguments: Iterable[Any]) -> None:
    """Refuse format strings, for "%" or `str.format`, that can ask for a large width."""
    if _LONG_NUMBER.search(text) or any("{" in (spec or "") for _, _, spec, _ in Formatter().parse(text)):
        raise LimitError("formats with fixed widths of at most 4 digits, got another one")
    if "*" in text:  # "%*d" takes its width from the arguments.
        _check_sizes("format", arguments)
