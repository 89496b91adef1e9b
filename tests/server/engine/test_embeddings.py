"""Pooled hidden states: those of transformers, and the same bits however the prompt was computed."""

import numpy as np
import pytest
import torch

from quire.builder.open import open_plan
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import RequestError
from quire.core.request import Request
from quire.engine.engine_loop import EngineLoop
from quire.server.engine.settings import embedding_params
from tests.support import equalities
from tests.support.hf_models import CASE_NAMES, save_checkpoint

PROMPTS = [[5, 6, 7], [9], list(range(1, 50)), [8, 3, 8, 3, 8, 3, 8, 3, 2] * 4]


def vectors(plan, pooling, prompts=PROMPTS, **options):
    return equalities.vectors(plan, pooling, prompts, **{"max_model_len": 64, **options})


@pytest.mark.parametrize("name", CASE_NAMES)
def test_vectors_are_those_of_transformers(name, tmp_path):
    model = save_checkpoint(name, tmp_path)
    plan = open_plan(str(tmp_path), BuildConfig())
    with torch.no_grad():
        states = [model.base_model(torch.tensor([ids])).last_hidden_state[0].double() for ids in PROMPTS]
    for pooling, pool in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1])):
        found, _ = vectors(plan, pooling)
        for ours, theirs in zip(found, map(pool, states), strict=True):
            np.testing.assert_allclose(ours, (theirs / theirs.norm()).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    save_checkpoint("llama", directory)
    return open_plan(str(directory), BuildConfig())


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_bits_do_not_depend_on_the_steps(plan, pooling):
    whole, _ = vectors(plan, pooling)
    assert whole == [vectors(plan, pooling, [ids])[0][0] for ids in PROMPTS], "alone"
    assert whole == vectors(plan, pooling, max_num_batched_tokens=7)[0], "in chunks"
    again, _ = vectors(plan, pooling, [*PROMPTS, *PROMPTS], enable_prefix_caching=True, max_num_seqs=2)
    assert again == [*whole, *whole], "after another with the same prefix"


def test_a_plan_from_a_directory_gives_them(plan, tmp_path):
    plan.save(tmp_path / "engine")
    assert vectors(open_plan(str(tmp_path / "engine"), BuildConfig()), "mean") == vectors(plan, "mean")


def test_a_plan_without_hidden_states_refuses(tmp_path):
    save_checkpoint("llama", tmp_path)
    plan = open_plan(str(tmp_path), BuildConfig(without_passes=("mark_hidden_states",)))
    loop = EngineLoop(plan, EngineConfig(kv_cache_memory_bytes=1 << 20))
    with pytest.raises(RequestError, match="embeddings: expected a plan"):
        loop.add(Request("a", (1, 2), embedding_params("mean"), pooling="mean"))
    assert not loop.has_unfinished()
    loop.close()
