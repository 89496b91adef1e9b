"""A directory as `facebook/opt-125m` ships it: `pytorch_model.bin`, `vocab.json`, `merges.txt`, and nothing newer."""

import json

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from quire import LLM, SamplingParams
from quire.core.errors import PlanError
from tests.support.hf_models import OPTConfig, OPTForCausalLM

TEXT = ["The quick brown fox jumps over the lazy dog.", "Grüße aus 東京 🦊", "numbers 12345, (brackets) [and] {more}"]


@pytest.fixture
def opt_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIRE_CACHE_DIR", str(tmp_path / "cache"))
    directory = tmp_path / "opt"
    directory.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT * 4, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save_model(str(directory))
    settings = {"add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
                "unk_token": "</s>", "tokenizer_class": "GPT2Tokenizer", "errors": "replace"}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=400, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
                       num_attention_heads=4, max_position_embeddings=128)  # fmt: skip
    model = OPTForCausalLM(config).eval()
    (directory / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["OPTForCausalLM"]}))
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return directory, model


def test_opt_as_it_lies_on_the_hub(opt_dir, caplog):
    directory, model = opt_dir
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(directory, max_num_seqs=4, kv_cache_memory_bytes=1 << 20) as llm:
        outputs = llm.generate(TEXT, params, use_tqdm=False)
        tokenizer = llm.get_tokenizer()
        llm.plan.save(directory.parent / "engine")
    assert any("pytorch_model.bin" in record.getMessage() for record in caplog.records), "the conversion is logged"
    for text, output in zip(TEXT, outputs, strict=True):
        ids = output.prompt_token_ids
        assert ids[0] == 2 and tokenizer.decode(ids) == text
        with torch.no_grad():
            logits = model(torch.tensor([ids + output.outputs[0].token_ids[:-1]])).logits[0]
        assert logits[len(ids) - 1 :].argmax(-1).tolist() == output.outputs[0].token_ids
    with LLM(directory.parent / "engine", max_num_seqs=4, kv_cache_memory_bytes=1 << 20) as llm:
        assert [o.outputs for o in llm.generate(TEXT, params, use_tqdm=False)] == [o.outputs for o in outputs]


def test_a_byte_less_is_an_error(opt_dir):
    directory, _ = opt_dir
    path = directory / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanError, match=r"pytorch_model\.bin"):
        LLM(directory, max_num_seqs=4)
