"""The build report: facts that add up, a page that is whole, self-contained and escaped, drawings that show fusions."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from quire.builder.open import open_plan
from quire.builder.report.comparison import compare
from quire.builder.report.drawing import made_of
from quire.builder.report.figures import verdict
from quire.builder.report.layout import lay_out
from quire.builder.report.listing import first_layer, read_listing
from quire.builder.report.page import render_html
from quire.builder.report.summary import summarize
from quire.builder.report.timings import timings
from quire.builder.report.words import compress, num_bytes, number, printable
from quire.core.config import BuildConfig
from quire.plan.device import Device
from quire.plan.plan import Plan
from quire.plan.tactics import DeviceTactics, TacticRecord, write_tactics
from tests.support.dummy_models import FAMILIES, write_model

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def plain():
    return summarize(open_plan("quire-tiny"))


@pytest.fixture(scope="module")
def quantized_plan():
    config = BuildConfig(quantization="w8a8", num_calibration_samples=4, calibration_length=64, max_kl=0.05)
    return open_plan("quire-tiny", config)


@pytest.fixture(scope="module")
def quantized(quantized_plan):
    return summarize(quantized_plan)


class Page(HTMLParser):
    """Reads a page strictly: every element that opens closes, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_facts_add_up(plain, quantized):
    for facts in (plain, quantized):
        sizes = facts["bytes"]
        assert sizes["weights"] == sum(part["bytes"] for part in sizes["parts"])
        assert sum(facts["schemes"].values()) == len(facts["layers"]) == 25
        assert sizes["kept"]["own"] + sizes["kept"]["referenced"] == sizes["weights"]
        assert not sizes["kept"]["is_saved"]
    assert plain["bytes"]["kept"]["own"] == 0 and plain["bytes"]["kept"]["files"][0].endswith("model.safetensors")
    assert plain["bytes"]["weights"] == plain["bytes"]["defined"] == quantized["bytes"]["defined"]
    assert quantized["schemes"] == {"w8a8": 24, "bfloat16": 1} and plain["schemes"] == {"bfloat16": 25}
    kept = {(part["part"], part["dtype"]): part["tensors"] for part in quantized["bytes"]["parts"]}
    assert kept == {
        ("linear w8a8: weights", "int8"): 24,
        ("linear w8a8: scales", "float32"): 24,
        ("embedding, also the output projection", "bfloat16"): 1,
        ("norms", "bfloat16"): 13,
    }
    down = quantized["layers"]["model_layers_0_mlp_down_proj"]
    assert down == {"scheme": "w8a8", "in_features": 768, "out_features": 256, "bytes": 768 * 256 + 4 * 256}


def test_ops_are_those_of_a_step(plain):
    assert plain["ops"]["linear"] == 25 and plain["ops"]["attention"] == 6
    assert not {"concat", "item", "rope_table"} & set(plain["ops"])  # folded at load, or no call


def test_the_network_is_told_before_and_after(quantized):
    before, after = (read_listing(quantized["network"][key]) for key in ("before", "after"))
    assert "linear_w8a8" not in {line.op for line in before} and "rms_norm" in {line.op for line in before}
    assert "linear_w8a8" in {line.op for line in after}


def test_page_is_whole_and_tells_the_figures(quantized):
    page = Page(render_html(quantized, "tiny"))
    accuracy = quantized["quantization"]["accuracy"]
    for words in (
        "Passed: KL divergence",
        number(accuracy["kl"]),
        number(accuracy["reverse_kl"]),
        f"{100 * accuracy['top1_agreement']:.2f} %",
        f"{accuracy['num_tokens']:,} tokens",
        "excluded by 'lm_head'",
        "nothing before it can take factors",
        num_bytes(quantized["bytes"]["weights"]),
        "As defined",
        "As bound",
        "replaces q_proj, k_proj, v_proj",
        "replaces add + rms_norm + quantize_rows",
    ):
        assert words in page.text, words
    layers = quantized["quantization"]["layers"]
    assert set(layers) <= set(page.words)  # a bar for each
    worst = max(layers, key=lambda name: layers[name]["error"])
    assert next(word for word in page.words if word in layers) == worst
    assert page.tags["svg"] >= 7 and page.tags["details"] == 2


def test_page_without_quantization(plain):
    page = Page(render_html(plain, "tiny"))
    assert "Not quantized" in page.text and "fuse_qkv" in page.text and "Error of each layer" not in page.text


def test_a_bare_report_and_an_empty_one_make_a_page(quantized_plan):
    assert "Passed: KL divergence" in Page(render_html(quantized_plan.report, "report")).text
    assert "No build report" in Page(render_html({}, "empty")).text


def test_page_loads_and_runs_nothing(quantized):
    text = render_html(quantized, "tiny")
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|//", text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on") and name != "src", (tag, name)
        assert name != "href" or value.startswith("#")
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} == anchors
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


HOSTILE = "<script>alert('&\"')</script>"


def test_names_are_escaped(quantized):
    layer = {"scheme": "w8a8", "group_size": 128, "smooth": None, "shares": None, "error": 0.5, "alpha": 0.5}
    quantization = quantized["quantization"]
    hostile = {
        **quantized,
        "model": {HOSTILE: HOSTILE, "architecture": HOSTILE},
        "settings": {HOSTILE: [HOSTILE], "without_passes": [HOSTILE]},
        "passes": [{"pass": HOSTILE, "matches": 1, "done": [HOSTILE], "missed": {HOSTILE: HOSTILE}}],
        "quantization": {**quantization, "text": HOSTILE, "layers": {HOSTILE: layer}, "skipped": {HOSTILE: HOSTILE}},
        "tactics": [{"op": HOSTILE, "shapes": [HOSTILE], "dtypes": [], "chosen": HOSTILE, "times_us": {HOSTILE: 1.0}}],
        "network": {key: text.replace("rms_norm(", f"{HOSTILE}, rms_norm(").replace("model.layers", HOSTILE)
                    for key, text in quantized["network"].items() if isinstance(text, str)},
    }  # fmt: skip
    text = render_html(hostile, HOSTILE)
    page = Page(text)
    assert page.tags["script"] == 0 and "<script" not in text
    assert page.words.count(HOSTILE) >= 12


def test_a_limit_that_is_passed_is_said(quantized):
    quantization = {**quantized["quantization"], "max_kl": 1e-9}
    over = {**quantized, "quantization": quantization}
    assert verdict(over).kind == "bad" and verdict(over).used > 1
    assert "Over the limit" in Page(render_html(over, "tiny")).text


def test_numbers_that_json_cannot_write_make_a_page(quantized):
    accuracy = {**quantized["quantization"]["accuracy"], "perplexity": None, "perplexity_change": None, "kl": None}
    broken = {**quantized, "quantization": {**quantized["quantization"], "accuracy": accuracy}}
    page = Page(render_html(broken, "tiny"))
    assert verdict(broken).kind == "bad" and "not a number" in page.text
    unlimited = {**quantized, "quantization": {**quantized["quantization"], "max_kl": None}}
    assert "Passed" in verdict(unlimited).headline and "no limit" in Page(render_html(unlimited, "tiny")).text


def test_a_kv_cache_alone_makes_a_page():
    config = BuildConfig(kv_cache_dtype="int8", num_calibration_samples=2, calibration_length=32, max_kl=1.0)
    facts = summarize(open_plan("quire-tiny", config))
    assert "KV cache scales" in {part["part"] for part in facts["bytes"]["parts"]}
    assert "No linear layer was quantized" in Page(render_html(facts, "tiny")).text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn(family, tmp_path):
    plan = open_plan(write_model(tmp_path, FAMILIES[family]), BuildConfig(load_format="dummy"))
    page = Page(plan.draw_page(plan))
    assert str(tmp_path) not in page.text  # a page may be published
    assert "As defined" in page.text and "As bound" in page.text
    for key in ("before", "after"):
        part = first_layer(read_listing(plan.report["network"][key]))
        assert part.prefix.endswith(".0.") and 10 <= len(part.lines) <= 30 and part.before and part.after


def test_first_layer_ends_where_the_next_begins(plain):
    lines = read_listing(plain["network"]["before"])
    part = first_layer(lines)
    assert part.prefix == "model.layers.0."
    assert [line.op for line in part.before] == ["embedding"]  # the table of angles is made of nothing
    assert part.lines[0].op == "rms_norm" and part.lines[-1].op == "add"
    assert part.after[0].weights == ("model.layers.1.input_layernorm.weight",)
    whole = read_listing("network n\n  input  x: float32[n]\n  %y = add(x, %z, alpha=[1, 2])  : float32[n]")
    assert first_layer(whole).lines == whole and whole[0].inputs == ("x",) and whole[0].uses == ("z",)


def test_listing_sees_through_calls_on_weights():
    (line,) = read_listing("  %y = linear(%x, concat(cast(a.0.q, dtype='float32'), a.0.k, dim=0), a.0.b)  : f[n, 3]")
    assert line.weights == ("a.0.q", "a.0.k", "a.0.b") and line.uses == ("x",) and line.layer == 0


def test_fused_calls_say_what_they_replace(plain, quantized):
    before = read_listing(plain["network"]["before"])
    for facts in (plain, quantized):
        found = {made_of(line, before) for line in first_layer(read_listing(facts["network"]["after"])).lines}
        assert {"q_proj, k_proj, v_proj", "gate_proj, up_proj", "rope + rope + append_kv"} <= found
    assert not any(made_of(line, before) for line in before)


def test_layout_keeps_boxes_apart_and_edges_downwards():
    sizes = [(60.0, 20.0)] * 8
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (0, 5), (5, 6), (0, 7), (1, 4)]
    found = lay_out(sizes, edges)
    for i, (x, y) in enumerate(found.boxes):
        assert x >= 0 and x + 60 <= found.width and y >= 0 and y + 20 <= found.height
        for other_x, other_y in found.boxes[:i]:
            assert abs(x - other_x) >= 60 or abs(y - other_y) >= 20
    for start, end in edges:
        assert found.boxes[start][1] + 20 <= found.boxes[end][1]
    assert found.rails == {6} and len(found.paths[6]) == 4
    assert lay_out([], []).boxes == []


def test_comparison_shows_what_differs(plain, quantized):
    found = compare(plain, quantized)
    assert not found["model"] and found["settings"]["quantization"] == (None, "w8a8")
    assert found["layers"]["model_layers_3_mlp_down_proj"] == ("bfloat16", "w8a8")
    assert "model_embed_tokens" not in found["layers"]
    assert found["accuracy"]["kl"] == (None, quantized["quantization"]["accuracy"]["kl"])
    assert found["bytes"]["weights"] == (plain["bytes"]["weights"], quantized["bytes"]["weights"])
    assert found["ops"]["linear"] == (25, 1) and "attention" not in found["ops"]
    same = compare(quantized, quantized)
    assert not any(same[key] for key in ("model", "settings", "passes", "layers", "ops"))


def test_an_engine_tells_its_own_bytes_and_the_tactics_beside_it(quantized_plan, tmp_path):
    quantized_plan.save(tmp_path)
    device = Device("cpu", "a <processor>", ("avx2",), 2, "2.11", "0.1")
    call = "linear(x=bfloat16[num_tokens, 256], weight=bfloat16[4096, 256], bias=None)"
    record = TacticRecord(call, "prepacked", {"reference": (10.0, 90.0), "prepacked": (5.0, 20.0)})
    write_tactics(tmp_path, DeviceTactics(device, (1, 64), (record,)))
    facts = summarize(Plan.load(tmp_path))
    kept = {"is_saved": True, "own": facts["bytes"]["weights"], "referenced": 0, "files": []}
    assert facts["bytes"]["kept"] == kept
    assert facts["quantization"] == quantized_plan.report["quantization"] and "As defined" in Plan.load(tmp_path).page
    (timing,) = timings(facts)
    assert (timing.op, timing.rows, timing.chosen, round(timing.speedup or 0, 6)) == (
        "linear",
        (1, 64),
        "prepacked",
        3.0,
    )
    assert timing.arguments == "x bf16[tokens, 256], weight bf16[4096, 256]"
    page = Page(render_html(facts, "engine"))
    assert "a <processor>, 2 threads" in page.text and "64 rows" in page.text and "3.0 x" in page.text


def test_words():
    assert compress(["a_0_b", "a_1_b", "a_2_b", "a_7_b", "c", "w8_3"]) == ["a_{0..2,7}_b", "c", "w8_3"]
    assert [number(value) for value in (0, 0.000196, 2.7921, 1234.5, 3e-7, float("nan"), None)] == [
        "0", "0.000196", "2.79", "1234", "3e-07", "not a number", "not a number",
    ]  # fmt: skip
    sizes = {0: "0 B", 1023: "1,023 B", 1536: "1.5 KiB", 3 << 20: "3.0 MiB", 5 << 30: "5.00 GiB"}
    assert {size: num_bytes(size) for size in sizes} == sizes
    assert printable("a\x1b[31mb\n") == "a\\x1b[31mb\n"
