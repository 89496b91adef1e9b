"""Quantized plans over ranks: built here, and taken over from checkpoints of every format."""

import pytest

from quire.builder.build import open_plan
from quire.core.config import BuildConfig
from tests.sharding.test_families import check, tokens
from tests.support.quantized_checkpoints import FORMATS, write_quantized
from tests.support.sharded_run import steps_of

ROUNDING = {name for name, form in FORMATS.items() if form.rounds_to is not None}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, tmp_path):
    write_quantized(tmp_path, FORMATS[name])
    plan = open_plan(tmp_path, BuildConfig(dtype="float32"))
    steps = steps_of([[[token % 61 for token in row] for row in rows] for rows in tokens()])
    check(plan, (1, 2), steps=steps)
    if name not in ROUNDING:
        check(plan, (2, 1), steps=steps)
        check(plan, (4, 1), steps=steps)
