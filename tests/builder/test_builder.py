"""Builder: networks defined by hand are configured, built, saved and served; what does not fit is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import quire
from examples.define_a_network import generate_eagerly
from quire import LLM, Builder, Network, Plan, SamplingParams, Tensor, functional, layers, net_guard
from quire.core.config import BuildConfig
from quire.core.errors import BuildError, ConfigError, PlanError
from quire.graph.text import network_to_text

F = functional
BUILDER = Builder()
TOKENIZER = Path(quire.__file__).parent / "assets" / "quire_tiny"
VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LENGTH = 50, 64, 4, 2, 16, 64


def decoder(define_mlp=None, dtype="float32", vocab=VOCAB, num_layers=2, end=None):
    """A decoder with learned positions; `end` makes the outputs of the logits."""
    network = BUILDER.create_network("mine")
    with net_guard(network):
        inputs = layers.DecoderInputs.declare(num_layers, KV_HEADS, HEAD_DIM, dtype)
        x = layers.Embedding("embed", vocab, HIDDEN, dtype)(inputs.input_ids)
        x = x + layers.Embedding("places", LENGTH, HIDDEN, dtype)(inputs.step.positions)
        for i in range(num_layers):
            q, k, v = (
                layers.Linear(f"l{i}.{name}", HIDDEN, count * HEAD_DIM, dtype)(x).view(-1, count, HEAD_DIM)
                for name, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
            )
            attention = layers.Attention(i, HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
            x = x + layers.RowLinear(f"l{i}.o", HIDDEN, HIDDEN, dtype)(
                attention(q, k, v, inputs.kv_caches[i], inputs.step)
            )
            x = x + (define_mlp or mlp)(i, layers.RmsNorm(f"l{i}.norm", HIDDEN, 1e-5, dtype)(x), dtype)
        (end or mark)(layers.Linear("lm_head", HIDDEN, vocab, dtype)(x), inputs)
    return network


def mlp(i, x, dtype):
    up, down = layers.Linear(f"l{i}.up", HIDDEN, 128, dtype), layers.Linear(f"l{i}.down", 128, HIDDEN, dtype)
    return layers.MLP(up, down, F.gelu)(x)


def experts(i, x, dtype):
    return layers.MOE(f"l{i}.moe", HIDDEN, 48, 4, 2, dtype)(x)


def mark(logits, inputs):
    logits.mark_output("logits")


def weights_of(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(spec.shape, generator=generator) * (0.5 if "embed" in name else 0.15)).to(spec.dtype)
        for name, spec in network.weights.items()
    }


def generate(model, prompts, max_tokens=12, **options):
    with LLM(model, skip_tokenizer_init=True, max_num_seqs=4, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=2, detokenize=False, ignore_eos=True)
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [(list(o.outputs[0].token_ids), o.outputs[0].logprobs) for o in outputs]


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [40, 41, 42], [3, 3, 3, 3]]


@pytest.mark.parametrize("define_mlp", [mlp, experts])
def test_a_network_is_served_as_it_is_defined(define_mlp, tmp_path):
    network = decoder(define_mlp)
    text, weights = network_to_text(network), weights_of(network)
    plan = BUILDER.build_engine(network, weights=weights)
    assert network_to_text(network) == text, "building left the network as it was"
    together = generate(plan, PROMPTS)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert generate(plan, [prompt]) == [found], "alone as in a batch, bit for bit"
    assert together[0][0] == generate_eagerly(network, weights, PROMPTS[0], 12)
    plan.save(tmp_path)
    assert generate(tmp_path, PROMPTS) == together == generate(Plan.load(tmp_path), PROMPTS)


def test_what_a_plan_says_of_itself_is_read_off_the_network():
    spec = BUILDER.build_engine(decoder(), weights=weights_of(decoder()), eos_token_ids=[7, 8]).spec
    assert (spec.architecture, spec.dtype, spec.vocab_size, spec.num_layers) == ("mine", "float32", VOCAB, 2)
    assert (spec.num_kv_heads, spec.head_dim, spec.eos_token_ids) == (KV_HEADS, HEAD_DIM, (7, 8))
    assert spec.max_position_embeddings == LENGTH, "as many as the table of positions has"
    shorter = BUILDER.build_engine(decoder(), weights=weights_of(decoder()), max_position_embeddings=20)
    assert shorter.spec.max_position_embeddings == 20


def test_eos_ends_a_sample():
    network, weights = decoder(), weights_of(decoder())
    first = generate(BUILDER.build_engine(network, weights=weights), PROMPTS[:1])[0][0][0]
    plan = BUILDER.build_engine(network, weights=weights, eos_token_ids=[first])
    with LLM(plan, skip_tokenizer_init=True, max_num_seqs=2) as llm:
        params = SamplingParams(temperature=0, max_tokens=9, detokenize=False)
        output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "stop" and list(output.token_ids) == [first]


@pytest.mark.parametrize("without_passes", [(), ("gather_last_token",)])
def test_logits_that_are_computed_for_all_tokens_are_read_at_the_right_ones(without_passes):
    """A network whose end is not row by row keeps a row of logits for every token."""

    def end(logits, inputs):
        turned = F.transpose(F.transpose(logits, 0, 1) * 0.5, 0, 1)
        turned.mark_output("logits")

    network = decoder(end=end)
    weights = weights_of(network)
    plan = BUILDER.build_engine(network, BUILDER.create_builder_config(without_passes=without_passes), weights=weights)
    assert ("logits_indices" in plan.network.inputs) == (not without_passes)
    for (tokens, _), prompt in zip(generate(plan, PROMPTS), PROMPTS, strict=True):
        assert tokens == generate_eagerly(network, weights, prompt, 12)


def test_a_tokenizer_goes_with_the_plan(tmp_path):
    network = decoder(vocab=4096)
    plan = BUILDER.build_engine(network, weights=weights_of(network), tokenizer=TOKENIZER)
    assert "tokenizer.json" in plan.small_files
    plan.save(tmp_path)
    texts = []
    for model in (plan, tmp_path):
        with LLM(model, max_num_seqs=2) as llm:
            texts.append(llm.generate("Hello", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)[0])
    assert texts[0].outputs[0].text == texts[1].outputs[0].text and texts[0].prompt_token_ids


def test_a_plan_without_a_tokenizer_asks_for_one():
    network = decoder(vocab=4096)
    plan = BUILDER.build_engine(network, weights=weights_of(network))
    with pytest.raises(ConfigError, match="tokenizer: expected a directory, since the plan was built without one"):
        LLM(plan)
    with LLM(plan, tokenizer=TOKENIZER, max_num_seqs=2) as llm:
        assert llm.get_tokenizer().encode("Hello")
    with pytest.raises(ConfigError, match="quantization: expected the default for an engine directory or a Plan"):
        LLM(plan, quantization="w8a8", skip_tokenizer_init=True)


@pytest.mark.parametrize(
    "precision, expected",
    [
        ("auto", BuildConfig()),
        ("float32", BuildConfig(dtype="float32")),
        ("bfloat16", BuildConfig(dtype="bfloat16")),
        ("float16", BuildConfig(dtype="float16")),
        ("w8a8", BuildConfig(quantization="w8a8")),
        ("w8a16", BuildConfig(quantization="w8a16")),
        ("w4a16", BuildConfig(quantization="w4a16")),
        ("fp8", BuildConfig(quantization="fp8")),
    ],
)
def test_precision_is_a_dtype_or_a_scheme(precision, expected):
    assert BUILDER.create_builder_config(precision) == expected


def test_settings_are_taken_over_and_never_overridden():
    config = BUILDER.create_builder_config("w4a16", dtype="bfloat16", group_size=64, exclude=["lm_head", "l0.up"])
    assert (config.quantization, config.dtype, config.group_size) == ("w4a16", "bfloat16", 64)
    assert config.exclude == ("lm_head", "l0.up")
    for precision, settings, message in [
        ("bfloat16", {"dtype": "float32"}, "dtype: expected 'bfloat16', which precision says, got 'float32'"),
        ("w8a8", {"quantization": "fp8"}, "quantization: expected 'w8a8', which precision says, got 'fp8'"),
        ("bfloat61", {}, r"precision: expected one of auto, .*, fp8, got 'bfloat61'. Did you mean 'bfloat16'"),
        ("int8", {}, "precision: expected one of"),
        (None, {}, "precision: expected one of .* got None"),
        ("auto", {"exlude": []}, "unknown argument 'exlude'. Did you mean 'exclude'"),
        ("auto", {"precison": "w8a8"}, "unknown argument 'precison'. Did you mean 'precision'"),
        ("auto", {"group_size": 7}, "group_size: expected 64 or 128, got 7"),
    ]:
        with pytest.raises(ConfigError, match=message):
            BUILDER.create_builder_config(precision, **settings)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (
            {"config": BuildConfig(dtype="bfloat16")},
            ConfigError,
            "precision: expected float32, in which network 'mine' is",
        ),
        ({"config": BuildConfig(revision="main")}, ConfigError, "revision: expected None, since the network is not a"),
        ({"config": BuildConfig(hf_overrides={})}, ConfigError, "hf_overrides: expected None"),
        (
            {"config": BuildConfig(load_format="dummy"), "weights": {}},
            ConfigError,
            "load_format: expected 'auto', since",
        ),
        (
            {"config": {"dtype": "float32"}},
            BuildError,
            "config: expected a BuildConfig, from create_builder_config, got d",
        ),
        (
            {"weights": None},
            BuildError,
            "weights: expected a directory, a file or tensors for 17 declared weights, got None",
        ),
        ({"eos_token_ids": [50]}, ConfigError, r"eos_token_ids: expected ids in \[0, 50\), got 50"),
        (
            {"max_position_embeddings": 65},
            BuildError,
            "expected a number of tokens, at most 64, for which the network has",
        ),
        ({"max_position_embeddings": 0}, BuildError, "expected a number of tokens, at most 64, .* got 0"),
        (
            {"config": BuildConfig(quantization="w8a16", calibration="x.txt")},
            ConfigError,
            "expected a tokenizer to read x",
        ),
    ],
)
def test_arguments_that_cannot_be_honoured(arguments, kind, message):
    network = decoder()
    with pytest.raises(kind, match=message):
        BUILDER.build_engine(network, **{"weights": weights_of(network), **arguments})


def test_only_networks_are_built():
    with pytest.raises(BuildError, match="network: expected a Network, from create_network, got str"):
        BUILDER.build_engine("quire-tiny")


def test_weights_that_do_not_fit_are_named():
    network = decoder()
    good = weights_of(network)
    for change, message in [
        ({"l0.up.weight": None}, r"weight 'l0\.up\.weight': expected a torch tensor, got NoneType"),
        (
            {"l0.up.weight": torch.zeros(3, 4)},
            r"weight 'l0\.up\.weight': expected float32\[128, 64\], got float32\[3, 4\]",
        ),
        ({"l0.up.weight": good["l0.up.weight"].double()}, r"weight 'l0\.up\.weight': expected float32.*, got float64"),
    ]:
        with pytest.raises(BuildError, match=message):
            BUILDER.build_engine(network, weights={**good, **change})
    fewer = {("l0.upp.weight" if name == "l0.up.weight" else name): tensor for name, tensor in good.items()}
    with pytest.raises(
        BuildError, match=r"'l0\.up\.weight': expected float32\[128, 64\], got none. Did you mean 'l0\.upp"
    ):
        BUILDER.build_engine(network, weights=fewer)


def test_weights_come_from_files_from_directories_and_from_nowhere(tmp_path):
    network = decoder()
    good = weights_of(network)
    expected = generate(BUILDER.build_engine(network, weights=good), PROMPTS)
    save_file({**good, "something.else": torch.zeros(2)}, tmp_path / "model.safetensors")
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        assert generate(BUILDER.build_engine(network, weights=path), PROMPTS) == expected
    save_file({name: tensor for name, tensor in good.items() if name != "l1.o.weight"}, tmp_path / "fewer.safetensors")
    with pytest.raises(
        PlanError, match=r"fewer\.safetensors: expected the 17 weights .* missing \(1\): 'l1\.o\.weight'"
    ):
        BUILDER.build_engine(network, weights=tmp_path / "fewer.safetensors")
    with pytest.raises(PlanError, match="nowhere"):
        BUILDER.build_engine(network, weights=tmp_path / "nowhere")
    dummy = BUILDER.create_builder_config(load_format="dummy", seed=3)
    assert generate(BUILDER.build_engine(network, dummy), PROMPTS) == generate(
        BUILDER.build_engine(network, dummy), PROMPTS
    )


def two_outputs(logits, inputs):
    logits.mark_output("logits")
    F.silu(logits).mark_output("more")


def unknown_input(logits, inputs):
    (logits + Tensor("position", "float32", ("num_tokens", VOCAB))).mark_output("logits")


def last_cache_only(logits, inputs):
    Tensor("kv_cache.3", "float32", (2, "num_blocks", KV_HEADS, "block_size", HEAD_DIM))
    logits.mark_output("logits")


def other_cache(logits, inputs):
    Tensor("kv_cache.2", "float32", (2, "num_blocks", 1, "block_size", HEAD_DIM))
    logits.mark_output("logits")


@pytest.mark.parametrize(
    "end, message",
    [
        (lambda logits, inputs: logits.mark_output("scores"), "expected the one output logits, got scores; end with"),
        (lambda logits, inputs: None, "expected the one output logits, got none"),
        (two_outputs, "expected the one output logits, got logits, more"),
        (
            lambda logits, inputs: logits.view(-1, VOCAB, 1).mark_output("logits"),
            r"expected floats \[num_tokens, vocab_size",
        ),
        (lambda logits, inputs: F.transpose(logits, 0, 1).mark_output("logits"), r"got float32\[50, num_tokens\]"),
        (lambda logits, inputs: F.argmax(logits, keepdim=True).mark_output("logits"), r"got int64\[num_tokens, 1\]"),
        (
            unknown_input,
            "input 'position': expected one that a runtime gives, of input_ids, .* Did you mean 'positions'",
        ),
        (last_cache_only, r"input 'kv_cache\.3': expected one that a runtime gives"),
        (
            other_cache,
            r"input 'kv_cache\.2': expected float32\[2, num_blocks, 2, block_size, 16\], got float32\[2, num_bl",
        ),
    ],
)
def test_a_network_that_no_runtime_can_run_is_refused(end, message):
    with pytest.raises(BuildError, match=message):
        BUILDER.build_engine(decoder(end=end), BuildConfig(load_format="dummy"))


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, r"expected the inputs input_ids and kv_cache\.0, .* got none; declare them with layers.Decoder"),
        ({"input_ids": ("int32", ("num_tokens",))}, r"expected the inputs input_ids and kv_cache\.0, .* got input"),
        ({"input_ids": ("int32", ("num_tokens",)), "kv_cache.0": ("float32", (2, "num_blocks"))}, "expected floats"),
        ({"input_ids": ("int64", ("num_tokens",)), "kv_cache.0": ("float32", (2, "num_blocks", 1, "block_size", 8))},
         r"input 'input_ids': expected int32\[num_tokens\], got int64\[num_tokens\]"),
        ({"input_ids": ("int32", ("num_tokens",)), "kv_cache.0": ("float32", (2, "num_blocks", 1, "block_size", 8))},
         "max_position_embeddings: expected the longest sequence in tokens, since network 'small' shows none"),
    ],
)  # fmt: skip
def test_inputs_that_no_runtime_gives_are_refused(inputs, message):
    network = Network("small")
    with net_guard(network):
        made = [Tensor(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
        table = network.add_weight("table", "float32", (5, 5))
        (F.embedding(made[0], table) if made else table * 1.0).mark_output("logits")
    with pytest.raises(BuildError, match=message):
        BUILDER.build_engine(network, BuildConfig(load_format="dummy"))


def test_settings_that_leave_a_declared_range_are_refused():
    network = Network("ranged")
    with net_guard(network):
        Tensor("slot_mapping", "int32", ("num_tokens",), dim_range={"num_tokens": (1, 32)})
        ids = Tensor("input_ids", "int32", ("num_tokens",))
        Tensor("kv_cache.0", "float32", (2, "num_blocks", 1, "block_size", 8), dim_range={"block_size": (8, 16)})
        layers.Embedding("table", 5, 5, "float32")(ids).mark_output("logits")
    plan = BUILDER.build_engine(network, BuildConfig(load_format="dummy"), max_position_embeddings=24)
    assert generate(plan, [[1, 2]], max_num_batched_tokens=32)
    with pytest.raises(
        ConfigError, match=r"max_num_batched_tokens: expected num_tokens to stay in 1\.\.32, .* 1\.\.33"
    ):
        generate(plan, [[1, 2]], max_num_batched_tokens=33)
    with pytest.raises(ConfigError, match=r"block_size: expected block_size to stay in 8\.\.16, .* got 32\.\.32"):
        generate(plan, [[1, 2]], max_num_batched_tokens=32, block_size=32)


def samples(count=8, length=24):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for _ in range(count)]


@pytest.mark.parametrize("precision", ["w8a16", "w8a8", "w4a16"])
def test_quantized_builds_are_calibrated_on_the_samples_given(precision, tmp_path):
    network = decoder(experts, dtype="bfloat16")
    config = BUILDER.create_builder_config(precision, group_size=64, exclude=["lm_head", "gate"], max_kl=1.0)
    plan = BUILDER.build_engine(network, config, weights=weights_of(network), samples=samples())
    report = plan.report["quantization"]
    assert report["text"] == "token ids given" and report["accuracy"]["kl"] > 0
    assert {"lm_head", "l0_moe_gate", "l1_moe_gate"} == set(report["skipped"])
    plan.save(tmp_path)
    assert generate(tmp_path, PROMPTS) == generate(plan, PROMPTS)


def test_a_quantized_build_over_its_limit_is_refused():
    network = decoder(dtype="bfloat16")
    config = BUILDER.create_builder_config("w8a8", max_kl=0.0)
    with pytest.raises(BuildError, match="max_kl"):
        BUILDER.build_engine(network, config, weights=weights_of(network), samples=samples())


@pytest.mark.parametrize(
    "given, message",
    [
        ([[1, 2, 3]], "samples: expected at least two, to calibrate and to evaluate on, got 1"),
        ([[1, 2, 3], [1]], r"samples\[1\]: expected 2 to 64 ids, got 1"),
        ([[1, 2, 3], [1, 50]], r"samples\[1\]: expected ids in \[0, 50\), got 50"),
        ([[1, 2, 3], [1, 2.0]], r"samples\[1\]: expected ids in \[0, 50\), got 2.0"),
    ],
)
def test_samples_that_cannot_be_run_are_refused(given, message):
    network = decoder()
    with pytest.raises(ConfigError, match=message):
        BUILDER.build_engine(network, BuildConfig(quantization="w8a16"), weights=weights_of(network), samples=given)
