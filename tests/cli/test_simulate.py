"""`quire simulate`: what it prints, what it measures, and what it refuses."""

import json

import pytest

from quire.cli.main import main
from tests.support.dummy_models import LLAMA, write_model


def run(capsys, *arguments):
    code = main(["simulate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", LLAMA)


def test_a_table_for_people(capsys, model):
    arguments = (model, "--load-format", "dummy", "--hardware", "H100", "--num-requests", "20", "--price-per-hour", "2")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "on 1 x 1 H100, predicted" in out
    assert all(word in out for word in ("tokens/s", "per million tokens", "first token", "waiting for a seat", "p99"))


def test_json_of_ranks_and_replicas(capsys, model):
    arguments = ("--load-format", "dummy", "--hardware", "H200", "-tp", "2", "-pp", "2", "--replicas", "3", "--json",
                 "--num-requests", "30", "--rate", "50", "--num-prefixes", "2", "--prefix-len", "64")  # fmt: skip
    code, out, _ = run(capsys, model, *arguments, "--router", "longest_prefix")
    found = json.loads(out)
    assert code == 0 and found["num_done"] == 30 and found["cost"]["devices"] == 12
    assert [stage["layers"] for stage in found["stages"]] == [1, 1] and found["num_blocks"] > 100
    assert all(stage["sent_bytes_per_token"] >= stage["least_bytes_per_token"] > 0 for stage in found["stages"])
    assert found["prefix_hit_share"] > 0.2 and found["settings"]["hardware"] == "H200"
    assert run(capsys, model, *arguments, "--router", "longest_prefix")[1] == out


def test_more_devices_that_talk_slowly_are_no_help(capsys, model):
    def throughput(*more):
        arguments = ("--load-format", "dummy", "--hardware", "H100", "--rate", "inf", "--json", *more)
        return json.loads(run(capsys, model, *arguments)[1])["output_tokens_per_s"]

    assert throughput("-tp", "2", "--link", "ethernet-100g") < throughput("-tp", "2") < throughput()


def test_measured_here_and_simulated(capsys, model, tmp_path):
    path, few = (
        tmp_path / "here.json",
        ("--load-format", "dummy", "--max-num-seqs", "4", "--max-num-batched-tokens", "32"),
    )
    code, out, _ = run(capsys, model, *few, "--device", "cpu", "--measure", path, "--measure-s", "2")
    assert code == 0 and "steps on" in out and path.exists()
    code, out, _ = run(capsys, model, *few, "--device", "cpu", "--timings", path, "--num-requests", "10", "--json")
    assert code == 0 and json.loads(out)["num_done"] == 10
    path.write_text("{}")
    code, _, err = run(capsys, model, *few, "--device", "cpu", "--timings", path)
    assert code == 2 and "calibration" in err


def test_a_trace(capsys, model, tmp_path):
    trace = tmp_path / "trace.jsonl"
    records = [{"prompt_tokens": 5}, {"prompt": "a" * 40}, {"prompt_tokens": 5000}]
    lines = (json.dumps({"arrival_s": i, "output_tokens": 2, **record}) for i, record in enumerate(records))
    trace.write_text("\n".join(lines))
    code, out, _ = run(capsys, model, "--load-format", "dummy", "--hardware", "L4", "--trace", trace, "--json")
    found = json.loads(out)
    assert code == 0 and (found["num_done"], found["num_refused"]) == (2, 1)
    assert found["prompt_tokens_per_s"] * found["duration_s"] == pytest.approx(
        15
    )  # 5, and 40 letters without a tokenizer


def test_texts_are_counted_by_the_models_own_tokenizer(capsys, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt": "The capital of France is", "output_tokens": 3}\n')
    code, out, _ = run(capsys, "quire-tiny", "--hardware", "L4", "--trace", trace, "--json")
    found = json.loads(out)
    assert code == 0 and 4 <= round(found["prompt_tokens_per_s"] * found["duration_s"]) <= 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hardware", "H1000"), "hardware: expected one of L4"),
        (("--hardware", "H100", "--link", "wire"), "link: expected one of"),
        (("--hardware", "H100", "--network", "wire"), "link: expected one of"),
        (("--hardware", "H100", "--timings", "f.json"), "timings: expected none"),
        (("--timings", "/nowhere.json"), "No such file"),
        (("--hardware", "H100", "-tp", "3"), "tensor"),
        (("--hardware", "H100", "-pp", "3"), "pipeline_parallel_size"),
        (("--replicas", "0"), "replicas: expected an integer of at least 1"),
        (("--price-per-hour", "-1"), "price_per_hour: expected at least 0"),
        (("--rate", "0"), "rate: expected more than 0"),
        (("--measure", "f.json", "--measure-s", "0"), "--measure-s: expected more than 0"),
        (("--measure", "f.json", "-tp", "2"), "--measure: expected one rank"),
        (("--trace", "/nowhere.jsonl", "--hardware", "H100"), "trace: expected a file"),
    ],
)
def test_wrong_use_is_one_line(capsys, model, arguments, said):
    code, _, err = run(capsys, model, "--load-format", "dummy", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1
