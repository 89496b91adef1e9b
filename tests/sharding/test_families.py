"""A plan cut for many ranks computes what the whole one does: all families, in threads of one process."""

import random

import pytest

from tests.support.sharded_models import FAMILIES, family_plan
from tests.support.sharded_run import run, run_sharded, steps_of
from tests.support.tolerance import assert_close


def tokens(seed=0, decode=3):
    """Prompts of two sequences, then steps of one token each, and a step in which one of them gets three."""
    rng = random.Random(seed)
    return [[[rng.randrange(211) for _ in range(n)] for n in counts] for counts in [(9, 4), *[(1, 1)] * decode, (3, 1)]]


def check(plan, layout, *, steps=None, by_reference=False):
    """Hold logits against those of one rank: within the table, and the same token at every position."""
    steps = steps or steps_of(tokens())
    alone = run(plan, steps, by_reference=by_reference)
    for expected, got in zip(alone, run_sharded(plan, *layout, steps, by_reference=by_reference), strict=True):
        assert_close(got, expected)
        assert got.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, tmp_path):
    plan = family_plan(tmp_path, family)
    for layout in ((8, 1), (2, 2)):
        check(plan, layout)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_other_layouts(family, tmp_path):
    plan, steps = family_plan(tmp_path, family), steps_of(tokens(decode=12))
    for layout in ((2, 1), (4, 1), (1, 2), (1, 3), (1, 4), (2, 3)):
        check(plan, layout, steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_by_reference_and_unfused(family, tmp_path):
    names = ("fuse_qkv", "fuse_gate_up", "fuse_silu_mul", "fuse_add_rms_norm", "fuse_rope_kv_write")
    check(family_plan(tmp_path, family), (4, 1), by_reference=True)
    check(family_plan(tmp_path, family, without_passes=names), (2, 2), by_reference=True)


@pytest.mark.slow
def test_greedy_tokens(tmp_path):
    """Greedy tokens over 50 steps, each fed what one rank said: where all are equal so far, the next is, too."""
    plan = family_plan(tmp_path, "llama")
    ids = [[[1, 2, 3], [4, 5]]]
    for _ in range(50):  # as many as max_position_embeddings leaves room for
        last = run(plan, steps_of(ids, max_len=64))[-1]
        counts = [len(row) for row in ids[-1]]
        ids.append([[int(last[sum(counts[: i + 1]) - 1].argmax())] for i in range(2)])
    for layout in ((2, 1), (1, 2), (2, 2)):
        check(plan, layout, steps=steps_of(ids, max_len=64))
