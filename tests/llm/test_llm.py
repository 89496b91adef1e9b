"""The offline door: the field's three-prompt example, chat, beams, bad input, closing."""

import math
import runpy
from pathlib import Path

import pytest

from quire import LLM, BeamSearchParams, SamplingParams
from quire.core.errors import ConfigError, PlanError, QuireError, RequestError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llm():
    with LLM("quire-tiny", max_num_seqs=16) as model:
        yield model


def greedy(**more):
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, **more})


def test_readme_example(capsys):
    """The Python block of the README runs as it stands."""
    code = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert "temperature=0.8, top_p=0.95" in code
    script = ROOT / ".readme_example.py"
    try:
        script.write_text(code)
        runpy.run_path(str(script))
    finally:
        script.unlink()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Prompt: ")]
    assert len(lines) == 3 and all("Generated text: '" in line for line in lines)


def test_built_in_model_knows_its_prompts(llm):
    outputs = llm.generate(["The capital of France is", "2 + 3 ="], greedy(), use_tqdm=False)
    assert outputs[0].outputs[0].text.startswith(" Paris")
    assert outputs[1].outputs[0].text.startswith(" 5")
    for prompt in ("Hello, my name is", "The future of AI is"):
        text = llm.generate(prompt, greedy(max_tokens=40), use_tqdm=False)[0].outputs[0].text
        assert len(text.split()) > 4 and text.strip()[-1].isprintable()


def test_chat_answers_and_stops(llm):
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    answer = llm.chat(messages, greedy(max_tokens=32), use_tqdm=False)[0].outputs[0]
    assert "Rome" in answer.text and answer.finish_reason == "stop" and answer.stop_reason is None
    twice = llm.chat([messages, messages], greedy(max_tokens=32), use_tqdm=False)
    assert [o.outputs[0].text for o in twice] == [answer.text] * 2


def test_stream_joins_to_the_whole(llm):
    whole = llm.generate("Once upon a time", greedy(max_tokens=30), use_tqdm=False)[0].outputs[0].text
    assert "".join(o.outputs[0].text for o in llm.stream("Once upon a time", greedy(max_tokens=30))) == whole


def test_streams_do_not_mix(llm):
    prompts = ["Once upon a time", "The future of AI is"]
    params = greedy(max_tokens=20, ignore_eos=True)
    whole = [o.outputs[0].text for o in llm.generate(prompts, params, use_tqdm=False)]
    first, second = (llm.stream(p, params) for p in prompts)
    pieces = ["", ""]
    for _ in range(5):
        pieces[0] += next(first).outputs[0].text
        pieces[1] += next(second).outputs[0].text
    between = llm.generate(prompts, params, use_tqdm=False)
    assert [o.outputs[0].text for o in between] == whole
    pieces[1] += "".join(o.outputs[0].text for o in second)
    pieces[0] += "".join(o.outputs[0].text for o in first)
    assert pieces == whole


def test_leaving_a_stream_frees_its_blocks(llm):
    stream = llm.stream("Once upon a time", greedy(max_tokens=100))
    next(stream)
    stream.close()
    assert llm.get_metrics()["num_requests_running"] == 0
    llm._engine.loop.scheduler.check_integrity()


def test_prompt_forms_are_equal(llm):
    ids = llm.get_tokenizer().encode("The sky")
    forms = ["The sky", {"prompt": "The sky"}, {"prompt_token_ids": ids}, ids]
    outputs = llm.generate(forms, greedy(), use_tqdm=False)
    assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1
    assert [o.prompt for o in outputs] == ["The sky", "The sky", None, None]
    assert all(o.prompt_token_ids == ids for o in outputs)
    assert llm.generate(ids, greedy(), use_tqdm=False)[0].outputs == outputs[3].outputs


def test_stop_string_ends_and_is_cut(llm):
    full = llm.generate("Once upon a time", greedy(max_tokens=40), use_tqdm=False)[0].outputs[0].text
    stop = full[10:14]
    cut = llm.generate("Once upon a time", greedy(max_tokens=40, stop=stop), use_tqdm=False)[0].outputs[0]
    assert cut.text == full[: full.index(stop)] and (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    kept = llm.generate(
        "Once upon a time", greedy(max_tokens=40, stop=stop, include_stop_str_in_output=True), use_tqdm=False
    )[0].outputs[0]
    assert kept.text == full[: full.index(stop) + len(stop)]


def test_stop_token_ids_end_with_their_id(llm):
    full = llm.generate("Once upon a time", greedy(), use_tqdm=False)[0].outputs[0].token_ids
    at = full.index(full[5])
    cut = llm.generate("Once upon a time", greedy(stop_token_ids=[full[5]]), use_tqdm=False)[0].outputs[0]
    assert cut.token_ids == full[: at + 1] and (cut.finish_reason, cut.stop_reason) == ("stop", full[5])


def test_min_tokens_and_ignore_eos(llm):
    prompt = "The capital of France is"
    short = llm.generate(prompt, greedy(max_tokens=50), use_tqdm=False)[0].outputs[0]
    assert short.finish_reason == "stop"
    longer = llm.generate(prompt, greedy(max_tokens=50, min_tokens=20), use_tqdm=False)[0].outputs[0]
    assert len(longer.token_ids) >= 20
    longest = llm.generate(prompt, greedy(max_tokens=50, ignore_eos=True), use_tqdm=False)[0].outputs[0]
    assert len(longest.token_ids) == 50 and longest.finish_reason == "length"


def test_logprobs_and_prompt_logprobs(llm):
    output = llm.generate("The capital of France", greedy(max_tokens=4, logprobs=2, prompt_logprobs=1), use_tqdm=False)[
        0
    ]
    completion = output.outputs[0]
    assert len(completion.logprobs) == len(completion.token_ids)
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token].rank == 1 and len(entry) == 2
        assert entry[token].decoded_token is not None
    total = sum(entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert math.isclose(completion.cumulative_logprob, total, rel_tol=1e-6)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert all(t in e for t, e in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True))


def test_bad_words_and_logit_bias(llm):
    tokenizer = llm.get_tokenizer()
    text = llm.generate("The capital of France is", greedy(bad_words=["Paris"]), use_tqdm=False)[0].outputs[0].text
    assert "Paris" not in text
    (token,) = tokenizer.encode("a", add_special_tokens=False)
    forced = llm.generate("b", greedy(logit_bias={token: 100}, max_tokens=3), use_tqdm=False)[0].outputs[0]
    assert forced.token_ids == [token] * 3
    allowed = llm.generate("b", greedy(allowed_token_ids=[token], max_tokens=3), use_tqdm=False)[0].outputs[0]
    assert allowed.token_ids == [token] * 3


def test_seeds_reproduce_and_samples_differ(llm):
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=20, n=3)
    first = llm.generate("One day", params, use_tqdm=False)[0]
    second = llm.generate("One day", params, use_tqdm=False)[0]
    assert first.outputs == second.outputs and len({c.text for c in first.outputs}) == 3


def test_beam_search_beats_greedy(llm):
    prompt = "The future of AI is"
    beams = llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))[0].sequences
    assert len(beams) == 4 and [b.cum_logprob for b in beams] == sorted((b.cum_logprob for b in beams), reverse=True)
    one = llm.beam_search(prompt, BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))[0].sequences[0]
    output = llm.generate(prompt, greedy(max_tokens=8, ignore_eos=True, logprobs=0), use_tqdm=False)[0].outputs[0]
    assert one.tokens[-8:] == output.token_ids and one.text == output.text
    assert beams[0].cum_logprob >= one.cum_logprob - 1e-6


def test_beam_search_finds_the_best_of_all_sequences(llm):
    """With beams for every token of a small set, two tokens deep, the search is exhaustive."""
    ids = llm.get_tokenizer().encode("One day")
    first = llm.generate(ids, greedy(max_tokens=1, logprobs=-1), use_tqdm=False)[0].outputs[0].logprobs[0]
    best = sorted(first, key=lambda t: -first[t].logprob)[:16]
    follow = llm.generate([[*ids, t] for t in best], greedy(max_tokens=1, logprobs=-1), use_tqdm=False)
    scores = {
        (t, u): first[t].logprob + entry.logprob
        for t, o in zip(best, follow, strict=True)
        for u, entry in o.outputs[0].logprobs[0].items()
    }
    beam = llm.beam_search([ids], BeamSearchParams(beam_width=16, max_tokens=2, ignore_eos=True))[0].sequences[0]
    assert math.isclose(beam.cum_logprob, max(scores.values()), rel_tol=1e-6)
    assert math.isclose(scores[tuple(beam.tokens[-2:])], beam.cum_logprob, rel_tol=1e-6)


BAD = {
    "empty text": ("", {}, "at least one token"),
    "empty ids": ([], {}, "at least one token"),
    "too long": ([5] * 2048, {}, "at most 2047 tokens"),
    "id out of range": ([5, 4096], {}, r"ids in \[0, 4096\), got 4096"),
    "negative id": ([5, -1], {}, r"ids in \[0, 4096\), got -1"),
    "id of a wrong type": ([5, "a"], {}, "expected integers"),
    "bytes": ({"prompt_token_ids": b"ab"}, {}, "expected a list of integers"),
    "unknown key": ({"text": "a"}, {}, "expected the keys prompt or prompt_token_ids"),
    "no text": ({"prompt": 3}, {}, "expected text or token ids"),
    "lone surrogate": ("a\ud800", {}, "surrogate"),
    "bias outside": ("a", {"logit_bias": {4096: 1}}, "logit_bias: expected ids in"),
    "allowed outside": ("a", {"allowed_token_ids": [9999]}, "allowed_token_ids: expected ids in"),
    "stop outside": ("a", {"stop_token_ids": [9999]}, "stop_token_ids: expected ids in"),
    "too many logprobs": ("a", {"logprobs": 5000}, "at most 4096"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_prompt_is_refused_and_hurts_nobody(llm, name):
    prompt, more, expected = BAD[name]
    before = llm.generate("The sky is", greedy(), use_tqdm=False)[0].outputs
    batch = ["The sky is", prompt]
    with pytest.raises(RequestError, match=expected):
        llm.generate(batch, [greedy(), greedy(**more)], use_tqdm=False)
    assert llm.get_metrics()["num_requests_running"] == 0 and not llm._engine.has_unfinished_requests()
    assert llm.generate("The sky is", greedy(), use_tqdm=False)[0].outputs == before
    llm._engine.loop.scheduler.check_integrity()


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"temperature": float("nan")}, "temperature: expected a finite number in [0, 2], got nan"),
        ({"temperature": 2.1}, "temperature"),
        ({"n": 1 << 31}, "n: expected an integer in [1, 128], got 2147483648"),
        ({"top_p": 0}, "top_p: expected a finite number in (0, 1]"),
        ({"top_p": "x"}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens: expected at most max_tokens=4, got 5"),
        ({"stop": "x", "detokenize": False}, "stop needs text: expected detokenize=True, got False"),
        ({"stop": ""}, "stop: expected non-empty strings"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs: expected StructuredOutputsParams"),
        ({"seed": 1.5}, "seed"),
        ({"ignore_eos": 1}, "ignore_eos: expected true or false, got 1"),
    ],
)
def test_bad_sampling_params(fields, expected):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"trust_remote_code": True}, "never runs code"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: expected an integer of at least 1"),
        ({"tensor_parallel_size": 7}, "tensor_parallel_size: expected one of"),
        ({"enable_lora": True}, "enable_lora: expected False"),
        ({"speculative_config": {}}, "speculative_config"),
        ({"quantization": "awq"}, "quantization"),
        ({"max_modellen": 3}, "unknown argument 'max_modellen'. Did you mean 'max_model_len'?"),
        ({"dtype": "float33"}, "Did you mean 'float32'?"),
        ({"max_model_len": 1 << 20}, "max_model_len: expected at most 2048"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"kv_cache_memory_bytes": 100}, "KV cache is too small"),
        ({"kv_cache_memory_bytes": 1 << 20, "max_model_len": 2000}, "max_model_len: expected at most"),
        ({"hf_overrides": {"hidden_act": "swishish"}}, "hidden_act"),
        ({"hf_overrides": {"architectures": ["LamaForCausalLM"]}}, "LamaForCausalLM"),
    ],
)
def test_bad_options(options, expected):
    with pytest.raises(QuireError) as caught:
        LLM("quire-tiny", **options)
    assert expected in str(caught.value)


def test_bad_arguments_of_generate(llm):
    with pytest.raises(RequestError, match="expected 2, one per prompt, got 1"):
        llm.generate(["a", "b"], [greedy()], use_tqdm=False)
    with pytest.raises(RequestError, match="priority: expected 1 values"):
        llm.generate("a", greedy(), priority=[1, 2], use_tqdm=False)
    with pytest.raises(ConfigError, match="lora_request"):
        llm.generate("a", greedy(), lora_request=object(), use_tqdm=False)
    with pytest.raises(RequestError, match="expected SamplingParams, got dict"):
        llm.generate("a", {"temperature": 0}, use_tqdm=False)
    assert llm.generate([], greedy(), use_tqdm=False) == []


def test_missing_model_says_what_to_do():
    with pytest.raises(QuireError, match="no/such/model"):
        LLM("/no/such/model")


def test_engine_directory_is_the_same_and_complete(llm, tmp_path):
    llm.plan.save(tmp_path / "engine")
    before = llm.generate("The sky is", greedy(), use_tqdm=False)[0].outputs
    chat = [{"role": "user", "content": "Hello!"}]
    with LLM(tmp_path / "engine", max_num_seqs=4) as loaded:
        assert loaded.generate("The sky is", greedy(), use_tqdm=False)[0].outputs == before
        assert (
            loaded.chat(chat, greedy(), use_tqdm=False)[0].outputs
            == llm.chat(chat, greedy(), use_tqdm=False)[0].outputs
        )
        assert loaded.get_default_sampling_params() == llm.get_default_sampling_params()
    with pytest.raises(ConfigError, match="built already"):
        LLM(tmp_path / "engine", dtype="float32")


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_engine_is_a_plan_error(llm, tmp_path, name, damage):
    llm.plan.save(tmp_path / "engine", copy_weights=True)
    path = tmp_path / "engine" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(QuireError) as caught:
        LLM(tmp_path / "engine", max_num_seqs=1)
    assert isinstance(caught.value, (PlanError, ConfigError)), caught.value


def test_sleep_and_close_return_memory(tmp_path):
    model = LLM("quire-tiny", max_num_seqs=2)
    before = model.generate("The sky is", greedy(), use_tqdm=False)[0].outputs
    model.sleep(level=1)
    assert 0 < model._engine.loop.runner.num_bytes() < 20e6
    model.wake_up()
    assert model.generate("The sky is", greedy(), use_tqdm=False)[0].outputs == before
    model.sleep(level=2)
    assert model._engine.loop.runner.num_bytes() == 0
    with pytest.raises(QuireError, match="wake_up"):
        model.generate("The sky is", greedy(), use_tqdm=False)
    model.wake_up()
    assert model.generate("The sky is", greedy(), use_tqdm=False)[0].outputs == before
    model.close()
    assert model._engine.loop.runner.num_bytes() == 0
    with pytest.raises(ConfigError, match="level"):
        model.sleep(level=3)


def test_without_tokenizer():
    with LLM("quire-tiny", skip_tokenizer_init=True, max_num_seqs=2) as model:
        output = model.generate([1, 2, 3], SamplingParams(temperature=0, detokenize=False), use_tqdm=False)[0]
        assert len(output.outputs[0].token_ids) > 0 and output.outputs[0].text == ""
        with pytest.raises(RequestError, match="no tokenizer"):
            model.generate("text", SamplingParams(detokenize=False), use_tqdm=False)
        with pytest.raises(RequestError, match="detokenize: expected False"):
            model.generate([1], SamplingParams(), use_tqdm=False)
        with pytest.raises(ConfigError, match="skip_tokenizer_init"):
            model.get_tokenizer()
