"""Recordings: the same engine gives the same bits, alone and in a batch; any other is found out."""

import dataclasses
import shutil

import msgspec
import pytest
import torch

from quire.builder.open import open_plan
from quire.cli.main import main
from quire.core.config import BuildConfig
from quire.core.errors import PlanError
from quire.plan.plan import Plan
from quire.plan.weight_source import TensorWeights
from quire.runner.replay import read_recording, record, replay, write_recording
from tests.support.dummy_models import FAMILIES, write_model


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    directory = write_model(tmp_path_factory.mktemp("m"), FAMILIES["llama"])
    return open_plan(directory, BuildConfig(load_format="dummy", dtype="bfloat16"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_has_the_recorded_bits(family, tmp_path):
    plan = open_plan(write_model(tmp_path, FAMILIES[family]), BuildConfig(load_format="dummy", dtype="bfloat16"))
    found = replay(plan, record(plan))
    assert found.num_equal == found.num_rows == 3 * 8 * 2, "each alone, and all together"
    assert found.largest_difference == 0 and found.is_same_device and found.tokens_differ_at is None


def test_one_weight_that_moved_is_found_out(plan):
    name = "model.layers.1.mlp.down_proj.weight"
    changed = plan.weights.read(name).clone()
    changed[0, 0] += 1.0
    other = dataclasses.replace(plan, weights=TensorWeights({name: changed}, plan.weights))
    found = replay(other, record(plan))
    assert found.num_equal < found.num_rows / 4 and found.largest_difference > 0


def test_recordings_are_kept_and_damage_is_noticed(plan, tmp_path):
    made = record(plan)
    path = write_recording(tmp_path, made)
    assert read_recording(tmp_path) == made
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(PlanError, match=r"recording\.json: .*quire verify ENGINE --record"):
        read_recording(tmp_path)
    path.unlink()
    with pytest.raises(PlanError, match="expected recorded logits, got: No such file"):
        read_recording(tmp_path)


def test_the_command(plan, tmp_path, capsys):
    engine = tmp_path / "engine"
    plan.save(engine)
    assert main(["verify", str(engine)]) == 0
    assert "none recorded" in capsys.readouterr().out
    assert main(["verify", str(engine), "--record"]) == main(["verify", str(engine)]) == 0
    out = capsys.readouterr().out
    assert "48 of 48 rows have the recorded bits" in out and "verified" in out


def test_the_command_refuses_another_engine(plan, tmp_path, capsys):
    engine, other = tmp_path / "engine", tmp_path / "other"
    plan.save(engine)
    assert main(["verify", str(engine), "--record"]) == 0
    seeded = open_plan(plan.directory, BuildConfig(load_format="dummy", dtype="bfloat16", seed=1))
    seeded.save(other)
    shutil.copyfile(engine / "recording.json", other / "recording.json")
    assert main(["verify", str(other)]) == 1
    assert "NOT the engine that was recorded" in capsys.readouterr().out


def test_another_device_may_have_other_bits(plan, tmp_path, capsys):
    plan.save(tmp_path)
    made = record(plan)
    elsewhere = msgspec.structs.replace(made, device=msgspec.structs.replace(made.device, name="Another"))
    rows = [msgspec.structs.replace(row, hash="0" * 64) for row in elsewhere.sequences[0].rows]
    sequence = msgspec.structs.replace(elsewhere.sequences[0], rows=tuple(rows))
    write_recording(tmp_path, msgspec.structs.replace(elsewhere, sequences=(sequence, *elsewhere.sequences[1:])))
    assert main(["verify", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "32 of 48 rows" in out and "recorded on" in out and "Another" in out and "verified" in out


def test_verify_reads_every_byte(plan, tmp_path, capsys):
    plan.save(tmp_path)
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    Plan.load(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2
    assert "it was changed or damaged" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nothing")]) == 2


def test_logits_are_those_of_the_network(plan):
    """The first recorded row is what the reference interpreter computes, within the dtype's tolerance."""
    made = record(plan).sequences[0]
    from tests.support.paged_run import PagedRun

    weights = {name: plan.weights.read(name) for name in plan.network.weights}
    inputs_free = open_plan(plan.directory, BuildConfig(load_format="dummy", dtype="bfloat16",
                                                        without_passes=("gather_last_token",)))  # fmt: skip
    run = PagedRun(inputs_free.network, plan.spec, weights, 1, 64)
    logits = run.step([list(made.prompt_token_ids)])[0][-1].float()
    for token, value in made.rows[0].largest:
        assert abs(logits[token] - value) <= 0.05 * logits.abs().max()
    assert torch.isfinite(logits).all()
