"""Times by a roofline and by a calibration, of calls, of attention, of exchanges, and of whole steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.builder.open import open_plan
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, PlanError
from quire.core.mapping import Mapping
from quire.plan.device import this_device
from quire.sharding.cost import Exchange
from quire.sharding.shard import shard
from quire.simulation.timing.calibration import Calibration, read_calibration, write_calibration
from quire.simulation.timing.costs import Attended, AttentionCost, CallCost, NetworkCosts, StepShape
from quire.simulation.timing.exchanges import Exchanges, exchange_s
from quire.simulation.timing.fitting import Roof, TimedStep, fit, measured_hardware
from quire.simulation.timing.hardware import HARDWARE, LINKS, Link, hardware_named, link_named
from quire.simulation.timing.pace import Calibrated, Roofline, neighbours
from quire.simulation.timing.times import Stage, StepTimes
from tests.support.dummy_models import LLAMA, write_model

ROOF = Roof(read_bytes_per_s=1e9, flops=1e12)
HERE = Roofline(measured_hardware("cpu", ROOF))
LINEAR = CallCost("linear", 2, "num_tokens", "bfloat16", flops=2e6, fixed_bytes=2e6, row_bytes=4000)
LOGITS = CallCost("linear", 1, "num_logits", "bfloat16", flops=4e6, fixed_bytes=4e6, row_bytes=2000)
ATTENTION = AttentionCost(2, None, "bfloat16", False, pair_flops=4096, key_bytes=512, query_bytes=1024)
COSTS = NetworkCosts((LINEAR, LOGITS), (ATTENTION,))


def calibration(**changes):
    given = {
        "device": this_device(), "model": "m", "read_bytes_per_s": 1e9, "flops": 1e12, "rows": (1, 16, 256),
        "factors": (1.0, 2.0, 4.0), "decode_factor": 2.0, "prefill_factor": 3.0, "step_s": 1e-3, "row_s": 1e-4,
        "request_s": 2e-3, "num_steps": 10, "error": 0.01,
    }  # fmt: skip
    return Calibration(**{**given, **changes})


def test_a_call_takes_what_takes_longer_and_a_little_of_the_other():
    few, many = HERE.call_s(LINEAR, 1), HERE.call_s(LINEAR, 100_000)
    assert few == pytest.approx(2.004e6 / 1e9, rel=1e-3)  # bytes
    moved = (2e6 + 4000 * 1e5) / 1e9
    assert many == pytest.approx(((2e6 * 1e5 / 1e12) ** 3 + moved**3) ** (1 / 3))
    assert HERE.call_s(LINEAR, 0) == 0.0


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_more_rows_are_no_faster(one, other):
    for pace in (HERE, Roofline(HARDWARE["H100"])):
        times = [pace.call_s(LINEAR, rows) for rows in sorted((one, other))]
        assert times == sorted(times)


def test_faster_devices_are_faster():
    attended = Attended(10_000, 4096, 4096 * 4097 // 2)
    for cost in (lambda p: p.call_s(LINEAR, 7), lambda p: p.attention_s(ATTENTION, attended, 4096)):
        times = [cost(Roofline(HARDWARE[name])) for name in ("L4", "A100", "H100", "H200", "B200")]
        assert times == sorted(times, reverse=True)


def test_a_cache_of_eight_bits_is_read_slower_by_the_byte():
    narrow = AttentionCost(1, None, "bfloat16", True, 4096, 512, 1024)
    pace, attended = Roofline(HARDWARE["H200"]), Attended(100_000, 0, 0)
    share = HARDWARE["H200"].efficiency.narrow_cache
    assert pace.decode_s(narrow, attended) == pytest.approx(pace.decode_s(ATTENTION, attended) / share)


def test_neighbours_share_by_the_logarithm():
    knots = (1, 16, 256)
    assert neighbours(knots, 4) == ((0, pytest.approx(0.5)), (1, pytest.approx(0.5)))
    assert neighbours(knots, 16)[0] == (1, 1.0) and neighbours(knots, 1)[0] == (0, 1.0)
    assert neighbours(knots, 256) == ((2, 1.0),) and neighbours(knots, 9999) == ((2, 1.0),)


def test_a_calibration_multiplies_by_kind_and_rows():
    pace = Calibrated(HERE, calibration())
    assert pace.call_s(LINEAR, 4) == pytest.approx(1.5 * HERE.call_s(LINEAR, 4))
    attended = Attended(100, 50, 1000)
    wanted = 2 * HERE.decode_s(ATTENTION, attended) + 3 * HERE.prefill_s(ATTENTION, attended, 60)
    assert pace.attention_s(ATTENTION, attended, 60) == pytest.approx(wanted)
    assert pace.host_s(5, 2) == pytest.approx(5.5e-3) and pace.call_s(LINEAR, 0) == 0.0 and not pace.is_ahead


def test_steps_add_up():
    shape = StepShape(20, 3, 4, 0, {None: Attended(30, 17, 200)})
    (seconds,) = StepTimes([Stage(COSTS)], HERE).of(shape).stages
    attention = HERE.attention_s(ATTENTION, shape.attended[None], 20)
    assert seconds == pytest.approx(2 * HERE.call_s(LINEAR, 20) + HERE.call_s(LOGITS, 3) + 2 * attention)


def seconds_of(times, shape):
    found = times.of(shape)
    return found.host + sum(found.stages)


def shapes():
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for keys in (20, 300):
            yield StepShape(rows, rows, rows, 0, {None: Attended(rows * keys, 0, 0)})
    for tokens in (8, 16, 64, 100, 256):
        for start in (0, 200):
            pairs = tokens * start + tokens * (tokens + 1) // 2
            yield StepShape(tokens, 1, 1, int(start == 0), {None: Attended(0, start + tokens, pairs)})
    yield StepShape(40, 9, 9, 1, {None: Attended(8 * 50, 32, 32 * 33 // 2)})


def test_a_fit_finds_what_made_the_times_though_some_are_spoilt():
    truth = calibration()
    times = StepTimes([Stage(COSTS)], Calibrated(HERE, truth))
    steps = [TimedStep(shape, seconds_of(times, shape)) for shape in shapes()]
    spoilt = [*steps, *(step._replace(seconds=3 * step.seconds) for step in steps[::6])]
    for given_steps in (steps, spoilt):
        found = fit(given_steps, COSTS, ROOF, this_device(), "m", (1, 16, 256))
        predicted = StepTimes([Stage(COSTS)], Calibrated(HERE, found))
        for step in steps:
            assert seconds_of(predicted, step.shape) == pytest.approx(step.seconds, rel=0.02)
        assert found.error < 0.02 and found.num_steps == len(given_steps)
        assert found.prefill_factor == pytest.approx(3.0, rel=0.1)


def test_a_knot_that_no_step_reached_is_as_the_others():
    truth = StepTimes([Stage(COSTS)], Calibrated(HERE, calibration(factors=(2.0, 2.0, 2.0))))
    few = [shape for shape in shapes() if shape.num_tokens <= 16]
    steps = [TimedStep(shape, seconds_of(truth, shape)) for shape in few]
    found = fit(steps, COSTS, ROOF, this_device(), "m", (1, 16, 4096, 8192))
    assert found.factors[-1] == pytest.approx(2.0, rel=0.3)


def test_files_come_back_and_damage_is_found(tmp_path):
    path = tmp_path / "here.json"
    write_calibration(path, calibration())
    assert read_calibration(path) == calibration()
    path.write_text(path.read_text().replace("0.001", "0.002"))
    with pytest.raises(PlanError, match="expected hash"):
        read_calibration(path)
    with pytest.raises(PlanError, match="quire simulate MODEL --measure"):
        read_calibration(tmp_path / "none.json")


def test_exchanges_send_what_is_counted_and_small_sums_go_at_once():
    link = Link("fast", 1e9, 1e-5, "")
    reduce, gather, send = (Exchange(kind, (0, 1, 2, 3), 1000, "num_tokens", 4)
                            for kind in ("all_reduce", "all_gather", "send"))  # fmt: skip
    few, many = 1, 100
    assert exchange_s(reduce, few, link, 50_000) == pytest.approx(1e-5 + 3 * 1000 / 1e9)
    assert exchange_s(reduce, many, link, 50_000) == pytest.approx(2e-5 + 1.5 * 1000 * many / 1e9, rel=1e-3)
    assert exchange_s(gather, 8, link, 0) == pytest.approx(1e-5 + 3 * 8000 / 1e9)
    assert exchange_s(send, 8, link, 0) == pytest.approx(1e-5 + 8000 / 1e9)
    assert exchange_s(reduce, 0, link, 0) == 0


def test_ranks_on_other_hosts_are_further_away(tmp_path):
    config = {**LLAMA, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    plan = open_plan(write_model(tmp_path, config), BuildConfig(load_format="dummy", dtype="bfloat16"))
    inside, between = Link("fast", 1e9, 1.0, ""), Link("slow", 1e9, 100.0, "")

    def rounds(rank, gpus_per_node, tp_size, pp_size):
        mapping = Mapping(4, rank, gpus_per_node, tp_size=tp_size, pp_size=pp_size)
        return round(Exchanges(shard(plan, mapping).network, mapping, inside, between, 1 << 16).seconds(3, 1))

    # The embedding's sum and two of each layer; the last layer's are of logits, which are gathered then.
    assert rounds(0, 4, 4, 1) == 1 + 2 * 4 + 1 and rounds(0, 2, 4, 1) == 100 * (1 + 2 * 4 + 1)
    assert rounds(0, 4, 2, 2) == 1 + 2 * 2 + 1 and rounds(0, 2, 2, 2) == 1 + 2 * 2 + 100
    assert rounds(2, 2, 2, 2) == 2 * 2 + 1  # receiving is the sender's time


def test_names_are_known_or_near():
    assert hardware_named("h100").name == "H100" and link_named("NVLink4").bytes_per_s == 450e9
    with pytest.raises(ConfigError, match=r"hardware: expected one of L4, .* Did you mean 'H100'\?"):
        hardware_named("H10")
    with pytest.raises(ConfigError, match="link: expected one of nvlink3"):
        link_named("string")


@pytest.mark.parametrize("device", HARDWARE.values(), ids=lambda device: device.name)
def test_every_device_has_a_link_a_source_and_sane_numbers(device):
    assert device.link in LINKS and device.source.startswith("https://")
    assert device.peak("int8") > device.peak("bfloat16") > device.peak("float32")
    assert (device.peak("float8_e4m3fn") > device.peak("bfloat16")) == ("float8_e4m3fn" in device.flops)
    assert 50 < device.peak("bfloat16") / device.read_bytes_per_s < 1000  # operations a byte at the ridge
    assert math.isclose(device.memory_bytes % 10**9, 0)
