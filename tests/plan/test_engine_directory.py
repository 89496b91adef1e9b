"""Engine directories: damage of any byte is a PlanError that names the part; weights may stay where they are."""

import json
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

import quire
from quire import LLM, SamplingParams
from quire.builder.open import open_plan
from quire.builder.tactics import tune
from quire.core.config import BuildConfig
from quire.core.errors import PlanError
from quire.ops.cpu import table
from quire.ops.cpu.table import TACTICS
from quire.plan.device import this_device
from quire.plan.plan import Plan
from quire.plan.tactics import DeviceTactics, TacticRecord, choices, describe, unusable, write_tactics
from tests.support.dummy_models import LLAMA, write_model

QUIRE_TINY = Path(quire.__file__).parent / "assets" / "quire_tiny"
FLIPS = 2000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model directory with real weights and a tokenizer."""
    root = tmp_path_factory.mktemp("source")
    config = {**LLAMA, "vocab_size": 4096}
    made = open_plan(write_model(root / "m", config), BuildConfig(load_format="dummy"))
    made.save(root / "dummy")
    shutil.copyfile(root / "dummy" / "weights.safetensors", root / "m" / "model.safetensors")
    shutil.copyfile(QUIRE_TINY / "tokenizer.json", root / "m" / "tokenizer.json")
    return root / "m"


def everything(directory):
    """Load all of an engine: what it computes, with which weights, and what it says of itself."""
    plan = Plan.load(directory)
    tensors = {name: plan.weights.read(name) for name in plan.network.weights}
    return str(plan.network), plan.spec, plan.build, plan.report, plan.page, plan.tactics, tensors


def equal(a, b):
    return a[:-1] == b[:-1] and a[-1].keys() == b[-1].keys() and all(torch.equal(a[-1][n], b[-1][n]) for n in a[-1])


@pytest.mark.parametrize("copy", [False, True])
def test_any_flipped_bit_is_noticed(model, tmp_path, copy):
    """Each of 2,000 random flips, over all files of an engine, is a PlanError or changes nothing at all."""
    plan = open_plan(model)
    engine = tmp_path / "engine"
    plan.save(engine, copy_weights=copy)
    write_tactics(engine, tune(plan.network))
    good = everything(engine)
    files = sorted(path for path in engine.rglob("*") if path.is_file())
    assert ("weights.safetensors" in {path.name for path in files}) == copy
    contents = {path: path.read_bytes() for path in files}
    rng = random.Random(0)
    noticed = 0
    for flip in range(FLIPS // 2):
        path = files[flip % len(files)]
        damaged = bytearray(contents[path])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert equal(everything(engine), good), f"damage of {path.name} went unnoticed"
        except PlanError as error:
            noticed += 1
            assert path.name in str(error) or path.name == "tokenizer.json", str(error)
        path.write_bytes(contents[path])
    assert noticed > 0.9 * FLIPS // 2, "only spaces between JSON values mean nothing"
    assert equal(everything(engine), good)


@pytest.mark.parametrize("cut", [0, 1, 7, 100])
@pytest.mark.parametrize("name", ["config.json", "graph.json", "report.json", "weights.safetensors", "tokenizer.json"])
def test_cut_files_are_noticed(model, tmp_path, name, cut):
    open_plan(model).save(tmp_path, copy_weights=True)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-cut] if cut else b"")
    with pytest.raises(PlanError, match=name.replace(".", r"\.")):
        everything(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(PlanError, match=name.replace(".", r"\.")):
        everything(tmp_path)


def test_weights_that_nothing_changed_stay_where_they_are(model, tmp_path):
    plan = open_plan(model)
    plan.save(tmp_path / "engine")
    assert not (tmp_path / "engine" / "weights.safetensors").exists()
    own = sum(p.stat().st_size for p in (tmp_path / "engine").glob("*.json") if p.name != "tokenizer.json")
    assert own < 40_000, "a plan by reference is some kilobytes"
    plan.save(tmp_path / "whole", copy_weights=True)
    by_reference, whole = everything(tmp_path / "engine"), everything(tmp_path / "whole")
    assert equal(by_reference, whole)
    Plan.load(tmp_path / "engine").save(tmp_path / "again")
    assert equal(everything(tmp_path / "again"), whole)
    Plan.load(tmp_path / "whole").save(tmp_path / "whole")
    assert equal(everything(tmp_path / "whole"), whole), "an engine may be saved onto itself"


def test_model_and_engine_may_move_together(model, tmp_path):
    shutil.copytree(model, tmp_path / "a" / "model")
    open_plan(tmp_path / "a" / "model").save(tmp_path / "a" / "engine")
    good = everything(tmp_path / "a" / "engine")
    (tmp_path / "a").rename(tmp_path / "b")
    assert equal(everything(tmp_path / "b" / "engine"), good)
    shutil.move(tmp_path / "b" / "engine", tmp_path / "engine")
    with pytest.raises(PlanError, match=r"expected the weights that the engine .* refers to.*--copy-weights"):
        Plan.load(tmp_path / "engine")


def test_weights_of_another_model_under_the_same_name(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    open_plan(tmp_path / "model").save(tmp_path / "engine")
    other = open_plan(
        write_model(tmp_path / "o", {**LLAMA, "vocab_size": 4096}), BuildConfig(load_format="dummy", seed=1)
    )
    other.save(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "weights.safetensors", tmp_path / "model" / "model.safetensors")
    with pytest.raises(
        PlanError, match=r"model\.safetensors, tensor .* belongs to another model\. Build the engine again"
    ):
        everything(tmp_path / "engine")


def edited(directory, change):
    """Change a manifest and give it the right hash again, as somebody who means it would."""
    from quire.plan.engine_directory import Manifest

    content = json.loads((directory / "config.json").read_text())
    change(content)
    manifest = msgspec.json.decode(msgspec.json.encode({**content, "hash": ""}), type=Manifest)
    content["hash"] = manifest.digest()
    (directory / "config.json").write_text(json.dumps(content))


def test_foreign_formats_and_paths_that_lead_outside(model, tmp_path):
    open_plan(model).save(tmp_path)
    edited(tmp_path, lambda content: content.update(quire_format=99))
    with pytest.raises(PlanError, match="expected engine format 3, got 99"):
        Plan.load(tmp_path)
    edited(tmp_path, lambda content: content.update(quire_format=3, files={"../x": "0"}))
    with pytest.raises(PlanError, match="names of files inside the directory"):
        Plan.load(tmp_path)
    edited(tmp_path, lambda content: content.update(files={}))
    with pytest.raises(PlanError, match=r"expected it to list graph\.json"):
        Plan.load(tmp_path)
    with pytest.raises(PlanError, match="expected an engine directory's config"):
        Plan.load(tmp_path / "nowhere")


def test_a_graph_edited_by_hand_is_refused(model, tmp_path):
    open_plan(model).save(tmp_path)
    graph = (tmp_path / "graph.json").read_text()
    (tmp_path / "graph.json").write_text(graph.replace('"eps": 1e-05', '"eps": 1e-06', 1))
    with pytest.raises(PlanError, match=r"graph\.json: expected hash .* Build the engine again: quire build .* -o "):
        Plan.load(tmp_path)


def test_errors_say_how_to_make_the_part_again(model, tmp_path):
    open_plan(
        model, BuildConfig(quantization="w8a16", num_calibration_samples=2, calibration_length=8, max_kl=9.0)
    ).save(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(PlanError, match=r"weights\.safetensors"):
        Plan.load(tmp_path)
    open_plan(model, BuildConfig(dtype="bfloat16")).save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(PlanError, match=r"tokenizer\.json: .* Copy it again from "):
        Plan.load(tmp_path)
    (tmp_path / "report.json").write_bytes(b"{}")
    with pytest.raises(PlanError, match=r"quire build .* --dtype bfloat16"):
        Plan.load(tmp_path)


def test_loading_needs_no_network(tmp_path, monkeypatch):
    open_plan("quire-tiny").save(tmp_path)

    def forbidden(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    with LLM(str(tmp_path)) as llm:
        out = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
    assert out[0].outputs[0].text.strip()


@pytest.fixture
def tuned(model):
    plan = open_plan(model)
    return plan, tune(plan.network)


def test_records_of_this_device_are_used(tuned):
    plan, measured = tuned
    assert measured.records and all(r.chosen in r.times_us and len(r.times_us) > 1 for r in measured.records)
    for record in measured.records:
        op = record.call.partition("(")[0]
        kept = {tactic.name for tactic in TACTICS if tactic.op == op and tactic.keeps_bits}
        products = {n: torch.tensor(times).log().sum().item() for n, times in record.times_us.items() if n in kept}
        assert record.chosen == min(products, key=products.get)
    assert choices([measured], this_device(), plan.network) == {r.call: r.chosen for r in measured.records}


def test_records_that_do_not_fit_are_left_out_and_said(tuned):
    plan, measured = tuned
    other = msgspec.structs.replace(
        measured, device=msgspec.structs.replace(measured.device, name="Another", threads=99)
    )
    assert choices([other], this_device(), plan.network) == {}
    (said,) = unusable([other], this_device(), plan.network)
    assert f"{len(measured.records)} records unused, measured on another device: name Another" in said
    assert "threads 99" in said
    first, *rest = measured.records
    stale = msgspec.structs.replace(first, times_us={**first.times_us, "gone": (1.0, 1.0, 1.0)})
    unknown = TacticRecord("no_such_call()", "x", {"x": (1.0,)})
    mixed = msgspec.structs.replace(measured, records=(stale, unknown, *rest))
    assert choices([mixed], this_device(), plan.network) == {r.call: r.chosen for r in rest}
    (said,) = unusable([mixed], this_device(), plan.network)
    assert "1 records unused, chosen among other tactics" in said
    assert not unusable([measured], this_device(), plan.network)


def test_the_executor_binds_what_was_chosen(model, tmp_path, monkeypatch):
    separate = tuple(t for t in TACTICS if t.kernel is None)  # compiled ones are joined to programs
    monkeypatch.setattr(table, "TACTICS", separate)
    plan = open_plan(model)
    norm = next(node for node in plan.network.calls() if node.target.name == "rms_norm")
    names = [t.name for t in separate if t.op == "rms_norm"]
    plan.save(tmp_path)
    record = TacticRecord(describe(norm), names[1], dict.fromkeys(names, (1.0,)))
    write_tactics(tmp_path, DeviceTactics(this_device(), (1,), (record,)))
    from quire.runner.execution.executor import Executor

    loaded = Plan.load(tmp_path)
    runs = [c.run for c in Executor(loaded.network, loaded.weights)._calls]
    chosen = choices(loaded.tactics, this_device(), loaded.network)
    tuned_runs = [c.run for c in Executor(loaded.network, loaded.weights, chosen=chosen)._calls]
    changed = [(a, b) for a, b in zip(runs, tuned_runs, strict=True) if a is not b]
    by_name = {t.name: t.run for t in separate if t.op == "rms_norm"}
    assert changed == [(by_name[names[0]], by_name[names[1]])]


def test_a_damaged_file_of_tactics_says_what_to_do(model, tmp_path):
    plan = open_plan(model)
    plan.save(tmp_path)
    path = write_tactics(tmp_path, tune(plan.network))
    path.write_bytes(path.read_bytes().replace(b'"chosen"', b'"chosem"', 1))
    with pytest.raises(PlanError, match=r"tactics/.*Delete it, or measure again with `quire build ENGINE --tune`"):
        Plan.load(tmp_path)


def test_an_engine_is_opened_without_the_builder(model, tmp_path):
    """What only a build needs is a tenth of a second of imports."""
    open_plan(model).save(tmp_path / "engine")
    code = (
        "import sys; from quire import LLM; from quire.builder.open import open_plan\n"
        f"open_plan({str(tmp_path / 'engine')!r})\n"
        "loaded = {'quire.builder.build', 'quire.quantization', 'quire.models', 'rich'} & sys.modules.keys()\n"
        f"open_plan({str(model)!r})\n"
        "print(loaded, 'quire.builder.build' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set() True\n", "")
