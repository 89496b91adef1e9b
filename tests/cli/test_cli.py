"""The command line: every verb with the built-in model, errors in one line, quick help."""

import json
import subprocess
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
import torch

from quire.cli.main import COMMANDS, main
from quire.cli.options import read_bytes
from quire.core.errors import ConfigError
from quire.plan import device


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_generate(capsys):
    code, out, _ = run(capsys, "generate", "quire-tiny", "The capital of France is", "--temperature", "0")
    assert code == 0 and out.startswith("The capital of France is ")
    code, out, _ = run(capsys, "generate", "quire-tiny", "a", "b", "--json", "--max-tokens", "3", "--n", "2")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(r["prompt"], r["index"]) for r in records] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_generate_reads_lines(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(["One\n", "\n", "Two\n"]))
    code, out, _ = run(capsys, "generate", "quire-tiny", "--max-tokens", "2", "--ignore-eos", "--json")
    assert code == 0 and [json.loads(line)["prompt"] for line in out.splitlines()] == ["One", "Two"]


def test_chat_streams_answers():
    command = [sys.executable, "-m", "quire", "chat", "quire-tiny", "--temperature", "0", "--max-tokens", "24"]
    done = subprocess.run(
        command, input="What is the capital of Italy?\nAnd of Spain?\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.strip()]) >= 2


def test_plan(capsys):
    code, out, _ = run(capsys, "plan", "quire-tiny")
    assert code == 0 and all(word in out for word in ("weights", "workspace", "KV cache", "sequences at once"))
    assert "What if" in out and "quantization=w8a8" in out and "100.0 %" in out
    code, out, _ = run(capsys, "plan", "quire-tiny", "--json", "--max-num-seqs", "2")
    record = json.loads(out)
    assert record["num_blocks"] == 257 and record["num_sequences"]["2048"] == 2 and record["fits"]
    assert {what["change"] for what in record["what_if"]} >= {"kv_cache_dtype=fp8", "max_num_batched_tokens=1024"}
    code, out, _ = run(capsys, "plan", "quire-tiny", "--graph")
    assert "model.layers.0.self_attn.{q,k,v}_proj.weight" in out


def test_plan_of_ranks(capsys):
    code, out, _ = run(capsys, "plan", "quire-tiny", "-tp", "2", "-pp", "2")
    assert code == 0 and "Ranks (the first of each stage)" in out and "3 layers; " in out
    code, out, _ = run(capsys, "plan", "quire-tiny", "--json", "-tp", "2", "-pp", "2")
    ranks = json.loads(out)["ranks"]
    assert code == 0 and [(rank["rank"], rank["num_layers"]) for rank in ranks] == [(0, 3), (2, 3)]
    assert all(rank["sent_bytes_per_token"] >= rank["least_bytes_per_token"] > 0 for rank in ranks)
    code, out, err = run(capsys, "plan", "quire-tiny", "-tp", "3")
    assert code == 2 and "expected one of 1, 2, 4, 8 for 8 query heads and 4 KV heads, got 3" in err


def test_plan_for_another_machine(capsys):
    code, out, _ = run(capsys, "plan", "quire-tiny", "--json", "--memory", "900MiB")
    record = json.loads(out)
    parts = (record[f"{term}_bytes"] for term in ("weight", "overhead", "kv"))
    assert code == 0 and record["total_bytes"] <= record["budget_bytes"] < 1.5 * 2**30 * 0.9
    assert record["total_bytes"] == sum(parts) + max(record["workspace_bytes"], record["sampling_bytes"])
    what_if = {what["change"]: what for what in record["what_if"]}
    most, doubled = record["num_sequences"]["2048"], what_if["kv_cache_dtype=int8"]["num_sequences"]
    assert 2 * most <= doubled <= 2 * most + 1
    assert what_if["quantization=w8a8"]["freed_bytes"] > 0
    code, out, err = run(capsys, "plan", "quire-tiny", "--memory", "60MiB")
    assert code == 2 and "It does not fit" in out and "What if" in out and "The largest term is" in err
    code, out, err = run(capsys, "plan", "quire-tiny", "--json", "--memory", "60MiB")
    assert code == 2 and not json.loads(out)["fits"]


@pytest.mark.parametrize(
    "text, expected",
    [("16GiB", 16 << 30), ("16G", 16 << 30), ("16 gb", 16 * 10**9), ("1.5MiB", 3 << 19), ("4096", 4096), ("12B", 12)],
)
def test_sizes(text, expected):
    assert read_bytes("--memory", text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "16 GiBs", "-1G", "0", "1e9", "99999999T", "16,5G", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="--memory: expected a size"):
        read_bytes("--memory", text)


def test_env(capsys):
    code, out, _ = run(capsys, "env", "--json")
    assert code == 0 and {"quire", "torch", "processor", "instruction sets", "memory"} <= set(json.loads(out))


def test_env_with_a_gpu(capsys, monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132)
    fakes = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: properties,
        "mem_get_info": lambda: (78 << 30, 80 << 30),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(device, "driver_version", lambda: "570.86.15")
    code, out, _ = run(capsys, "env", "--json")
    found = json.loads(out)
    assert code == 0 and found["gpu"].startswith("NVIDIA H100 80GB HBM3 (sm_90, cuda 12.8, triton ")
    assert found["gpu"].endswith("132 multiprocessors") and found["gpu driver"] == "570.86.15"
    assert found["gpu memory"] == "80.0 GiB, 78.0 GiB available"


def test_env_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = json.loads(run(capsys, "env", "--json")[1])
    assert found["gpu"] == "none that torch can use" and "gpu memory" not in found


@pytest.mark.parametrize("line, expected", [
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025", "570.86.15"),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
    ("something else", "unknown"),
    (None, "unknown"),
])  # fmt: skip
def test_driver_version(monkeypatch, line, expected):
    def read(path, **options):
        if line is None:
            raise FileNotFoundError(path)
        return StringIO(line)

    monkeypatch.setattr("builtins.open", read)
    assert device.driver_version() == expected


@pytest.mark.parametrize("kind", ["latency", "throughput", "startup"])
def test_bench(capsys, kind):
    code, out, err = run(
        capsys, "bench", kind, "quire-tiny", "--repeat", "1", "--input-len", "8", "--output-len", "4",
        "--num-prompts", "3", "--min-len", "2", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result["kind"] == kind
    if kind != "startup":
        assert result["tokens_per_s"] > 0 and result["roof_gb_per_s"] > 0 and result["roof_gflop_per_s"] > 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ("plan", "quire-tiny", "--dtype", "float16", "--block-size", "0"),
            "block_size: expected an integer of at least 1",
        ),
        (("generate", "quire-tiny", "x", "--temperature", "nan"), "temperature: expected a finite number"),
        (("plan", "/no/such/model"), "/no/such/model"),
        (("bench", "latency", "quire-tiny", "--repeat", "0"), "--repeat: expected at least 1"),
    ],
)
def test_errors_are_one_line_and_exit_2(capsys, arguments, expected):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.startswith("quire: ") and expected in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (("plan", "quire-tiny", "--dtyp", "x"), "Did you mean '--dtype'?"),
        (("genrate",), "Did you mean 'generate'?"),
        (("plan", "quire-tiny", "--dtype", "float33"), "invalid choice"),
    ],
)
def test_wrong_words_get_a_hint(capsys, arguments, hint):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    err = capsys.readouterr().err
    assert caught.value.code == 2 and hint in err and err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0 and "usage: quire" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-m", "quire", "--help"], check=True, capture_output=True, text=True)
    assert "generate" in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, quire.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
         "print([n for n in ('torch', 'numpy', 'rich', 'tokenizers') if n in sys.modules])"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert loaded.stdout.splitlines()[-1] == "[]"
