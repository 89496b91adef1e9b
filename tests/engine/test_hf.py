"""The engine as a whole against transformers: greedy tokens and logprobs, for every family, batched."""

import pytest
import torch

from quire import LLM, SamplingParams
from tests.support.hf_models import CASE_NAMES, save_checkpoint

PROMPT_LENS = (13, 1, 6, 29)
NUM_TOKENS = 64


@pytest.mark.parametrize("name", CASE_NAMES)
def test_engine_equals_transformers(name, tmp_path):
    model = save_checkpoint(name, tmp_path)
    vocab_size = model.config.vocab_size
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENS]
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, logprobs=vocab_size, prompt_logprobs=0
    )
    with LLM(tmp_path, skip_tokenizer_init=True, max_num_batched_tokens=16, kv_cache_memory_bytes=4 << 20) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = output.outputs[0].token_ids
        with torch.no_grad():
            theirs = model(torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0].log_softmax(-1)
        generated = theirs[len(prompt) - 1 :]
        assert generated.argmax(-1).tolist() == ids
        ours = torch.tensor([[entry[t].logprob for t in range(vocab_size)] for entry in output.outputs[0].logprobs])
        torch.testing.assert_close(ours, generated, atol=1e-4, rtol=0)
        for position, entry in enumerate(output.prompt_logprobs[1:]):
            token = prompt[position + 1]
            assert abs(entry[token].logprob - theirs[position, token].item()) < 1e-4


def test_one_broken_row_fails_alone(tmp_path):
    """A weight that makes one token's embedding NaN poisons the requests that contain it, and no others."""
    from safetensors.torch import load_file, save_file

    save_checkpoint("llama", tmp_path)
    clean = [[3, 4, 5], [6, 7], [9, 10, 11, 12]]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=2)
    options = {"skip_tokenizer_init": True, "kv_cache_memory_bytes": 1 << 20, "max_num_batched_tokens": 8}
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if n.endswith("embed_tokens.weight"))
    weights[name][50] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    with LLM(tmp_path, **options) as llm:
        expected = [o.outputs for o in llm.generate(clean, params, use_tqdm=False)]
        poison = SamplingParams(temperature=0, max_tokens=8, detokenize=False, prompt_logprobs=1)
        mixed = [clean[0], [3, 50, 4], clean[1], [50], clean[2]]
        outputs = llm.generate(mixed, [params, poison, params, params, params], use_tqdm=False)
        assert [outputs[i].outputs for i in (0, 2, 4)] == expected
        for i in (1, 3):
            assert outputs[i].outputs[0].finish_reason == "error" and outputs[i].outputs[0].stop_reason
        llm._engine.loop.scheduler.check_integrity()
        assert [o.outputs for o in llm.generate(clean, params, use_tqdm=False)] == expected, "blocks were left dirty"
