"""Results land in one table, from here or from a run on a GPU."""

import csv
import json
import sys

import pytest

import benchmarks.record
from benchmarks.gpu import record as gpu
from benchmarks.record import COLUMNS, Origin, here, record

RUN = {
    "device": "NVIDIA H100 80GB HBM3",
    "engine": "quire",
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "quire": "0.1.0"},
    "python": "3.12.3",
    "cuda": "12.8",
    "date": "2026-11-20",
    "roof": {"copy_tb_s": 2.9, "matmul_tflop_s": 700},
    "decode.8b.bf16": {"ms_per_token": 6.25, "share_of_copy": 0.8},
    "mixed.8b.bf16.profile": {"idle_share": 0.01, "kernels": {"gemm": 12.0}},
    "offline.8b.fp8.128/128": {"requests": 2048, "seconds": 10.5, "output_tokens_s": 25000.0, "of_published": 0.85},
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.record, "RESULTS", tmp_path / "results.csv")
    return tmp_path / "results.csv"


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_result_of_this_machine(results):
    record("a.b", "ms", [3.0, 1.0, 2.0])
    record("a.c", "ms", [1.0], save=False)
    (row,) = rows(results)
    assert tuple(row) == COLUMNS and (row["name"], row["p50"], row["n"]) == ("a.b", "2", "3")
    assert (row["date"], row["device"], row["versions"]) == (here().date, here().device, here().versions)


def test_a_result_of_another_machine(results):
    record("a", "s", [1.0], origin=Origin("a GPU", "torch 9", "2030-01-02"))
    (row,) = rows(results)
    assert (row["device"], row["versions"], row["date"]) == ("a GPU", "torch 9", "2030-01-02")


def test_every_number_of_a_run_is_recorded(results, tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.json").write_text(json.dumps(RUN))
    monkeypatch.setattr(sys, "argv", ["record", str(tmp_path / "gpu.json")])
    gpu.main()
    found = rows(results)
    assert {row["name"]: (row["p50"], row["unit"]) for row in found} == {
        "gpu.roof.copy_tb_s": ("2.9", "TB/s"),
        "gpu.roof.matmul_tflop_s": ("700", "TFLOP/s"),
        "gpu.decode.8b.bf16.ms_per_token": ("6.25", "ms"),
        "gpu.decode.8b.bf16.share_of_copy": ("0.8", "x"),
        "gpu.mixed.8b.bf16.profile.idle_share": ("0.01", "x"),
        "gpu.offline.8b.fp8.128/128.requests": ("2048", "requests"),
        "gpu.offline.8b.fp8.128/128.seconds": ("10.5", "s"),
        "gpu.offline.8b.fp8.128/128.output_tokens_s": ("25000", "tokens/s"),
        "gpu.offline.8b.fp8.128/128.of_published": ("0.85", "x"),
    }
    for row in found:
        assert row["p20"] == row["p50"] == row["p80"] and row["n"] == "1"
        assert (row["date"], row["device"]) == ("2026-11-20", "NVIDIA H100 80GB HBM3")
        assert row["versions"] == "torch 2.11.0, triton 3.6.0, quire 0.1.0, cuda 12.8, python 3.12.3"
    assert "gpu.roof.copy_tb_s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "field, unit",
    [("ms", "ms"), ("us", "us"), ("beyond_reading_s", "s"), ("tb_s", "TB/s"), ("share_of_matmul", "x")],
)
def test_units(field, unit):
    assert gpu.unit_of(field) == unit
