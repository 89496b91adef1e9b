"""Every family computes what transformers computes: logits, greedy tokens, logprobs, over a paged cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.weights.open import open_weights
from tests.support.hf_models import CASE_NAMES, save_checkpoint
from tests.support.paged_run import PagedRun

NUM_TOKENS = 64
PROMPT_LENS = (13, 6)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_network_equals_transformers(name: str, tmp_path: Path) -> None:
    model = save_checkpoint(name, tmp_path)
    spec = read_spec(json.loads((tmp_path / "config.json").read_text()))
    network = define_network(spec)
    source = open_weights(tmp_path, network.weights, checkpoint_names(spec).canonical)
    weights = {weight: source.read(weight) for weight in source.names()}
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(spec.vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENS]

    run = PagedRun(network, spec, weights, len(prompts), max(PROMPT_LENS) + NUM_TOKENS)
    sequences, logits = run.greedy(prompts, NUM_TOKENS)

    for ids, ours, prompt in zip(sequences, logits, prompts, strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        assert float(theirs.std()) > 0.5, "logits too flat to prove anything"
        scale = float(theirs.abs().max())
        assert float((ours - theirs).abs().max()) / scale < 1e-4
        # Their most likely token after every prefix is ours: greedy decoding gives the same 64 tokens.
        assert theirs[len(prompt) - 1 :].argmax(-1).tolist() == ids[len(prompt) :]
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=0)
