"""`quire inspect`: what is printed of a model and of an engine, as tables and as JSON, and how two compare."""

import json

import pytest

from quire.cli.main import main

QUICK = ("--num-calibration-samples", "4", "--calibration-length", "64", "--max-kl", "0.05")


def run(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("built") / "engine"
    assert main(["build", "quire-tiny", "-o", str(directory), "--quantization", "w8a8", *QUICK]) == 0
    return directory


def test_a_model_is_built_in_memory_and_summarised(capsys):
    code, out, err = run(capsys, "quire-tiny")
    assert code == 0 and not err
    for words in ("LlamaForCausalLM", "25 linear layers in bfloat16", "Not quantized", "fuse_qkv", "11.0 MiB",
                  "12: only its layout changes", "rope_append_kv", "11.0 MiB as they are in"):  # fmt: skip
        assert words in out, words


def test_build_settings_are_honoured(capsys):
    code, out, _ = run(capsys, "quire-tiny", "--quantization", "w8a8", *QUICK)
    assert code == 0
    for words in ("Passed: KL divergence", "top-1 agreement", "24 linear layers in w8a8", "excluded by 'lm_head'",
                  "nothing before it can take factors (model_layers_{0..5}_self_attn_o_proj)", "60 % of"):  # fmt: skip
        assert words in out, words
    code, out, _ = run(capsys, "quire-tiny", "--without-passes", '["fuse_qkv"]', "--json")
    assert "fuse_qkv" not in {record["pass"] for record in json.loads(out)["passes"]}


def test_an_engine(capsys, engine):
    code, out, _ = run(capsys, engine)
    assert code == 0
    for words in (
        "24 linear layers in w8a8",
        "6.6 MiB in the engine directory",
        "Passed: KL divergence",
        "fuse_norm_quant",
    ):
        assert words in out, words
    assert (engine / "report.html").read_text().startswith("<!doctype html>")


def test_a_tuned_engine_tells_its_tactics(capsys, tmp_path):
    assert main(["build", "quire-tiny", "-o", str(tmp_path / "engine"), "--tune"]) == 0
    capsys.readouterr()
    _, out, _ = run(capsys, tmp_path / "engine")
    assert "Tactics on" in out and "times for 1, 16, 256 rows" in out and "as they are in" in out
    assert "256 rows" in (tmp_path / "engine" / "report.html").read_text()


def test_json_holds_what_is_printed(capsys, engine):
    code, out, _ = run(capsys, engine, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["name"] == "engine" and facts["schemes"] == {"w8a8": 24, "bfloat16": 1}
    assert facts["bytes"]["kept"]["own"] == facts["bytes"]["weights"] and "network" not in facts
    assert facts["quantization"]["accuracy"]["kl"] < 0.05 and facts["passes"]
    _, out, _ = run(capsys, engine, "--json", "--graph")
    assert "linear_w8a8" in json.loads(out)["network"]["after"]


def test_graph(capsys, engine):
    _, out, _ = run(capsys, engine, "--graph")
    assert "network LlamaForCausalLM" in out and "model.layers.0.self_attn.qkv_proj.scales" in out


def test_page(capsys, tmp_path, engine):
    code, out, err = run(capsys, engine, "--html", tmp_path / "page.html", "--json")
    assert code == 0 and json.loads(out)["name"] == "engine" and "page.html" in err
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and "<title>engine" in page and "As bound" in page


def test_two_are_compared(capsys, engine):
    code, out, _ = run(capsys, engine, "quire-tiny")
    assert code == 0 and "The same: model" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["model_layers_{0..5}_mlp_down_proj", "w8a8", "bfloat16"] in lines
    assert ["linear", "1", "25"] in lines and ["quantization", "w8a8", "-"] in lines
    assert ["all", "weights", "6.6", "MiB", "11.0", "MiB"] in lines
    _, out, _ = run(capsys, engine, "quire-tiny", "--json", "--graph")
    found = json.loads(out)
    assert found["names"] == ["engine", "quire_tiny"] and found["ops"]["linear"] == [1, 25]
    assert any(line.startswith("-") and "linear_w8a8" in line for line in found["graph"].splitlines())


def test_the_same_twice(capsys, engine):
    code, out, _ = run(capsys, engine, engine, "--graph")
    assert code == 0 and "settings" in out.partition("The same:")[2] and out.rstrip().endswith("the same")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("/no/such/model",), "/no/such/model"),
        (("quire-tiny", "--html", "/no/such/folder/page.html"), "--html: expected a file that can be written"),
        (("quire-tiny", "quire-tiny", "--html", "page.html"), "--html: expected one MODEL"),
    ],
)
def test_errors_are_one_line_and_exit_2(capsys, arguments, expected):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and err.startswith("quire: ") and expected in err and err.count("\n") == 1


def test_build_settings_for_what_is_built_are_refused(capsys, engine):
    for given in ((engine,), (engine, engine)):
        code, _, err = run(capsys, *given, "--quantization", "w8a8")
        assert code == 2 and "quantization: expected the default for an engine directory" in err
