"""The masks of a step: those of the rows that have a grammar, each by itself."""

from __future__ import annotations

from collections.abc import Mapping

from quire.core.errors import RequestError
from quire.core.log import get_logger
from quire.sampling.grammar.compiler import Words
from quire.sampling.row import SamplingRow

_log = get_logger(__name__)


def masks_of(rows: Mapping[int, SamplingRow]) -> tuple[dict[int, Words], dict[int, str]]:
    """Compute which tokens may come next.

    Args:
        rows: By any index; those without a grammar are passed over.

    Returns:
        Masks by index, and by index why there is none: such a row fails alone.
    """
    masks: dict[int, Words] = {}
    problems: dict[int, str] = {}
    for index, row in rows.items():
        if row.grammar is None:
            continue
        try:
            masks[index] = row.grammar.mask(row.output_token_ids)
        except RequestError as error:
            problems[index] = str(error)
        except Exception as error:
            _log.exception("a grammar failed")
            problems[index] = f"structured_outputs: {type(error).__name__} in the grammar."
    return masks, problems
