"""Norms, activations, rope, arithmetic and layout ops: values, shapes, and place independence of the CPU tactics."""

import pytest
import torch

from quire.core.errors import ShapeError, TacticError
from quire.ops import elementwise, layout, norm, rope
from quire.ops.cpu import elementwise as cpu
from quire.ops.cpu import rope as cpu_rope
from quire.ops.registry import OPS
from quire.ops.spec import TensorSpec
from quire.ops.tactics import tactics_for
from tests.support.tolerance import assert_close

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 37, 64, 1000)
ACTIVATIONS = {
    "silu": (cpu.silu, elementwise.silu),
    "gelu": (cpu.gelu, elementwise.gelu),
    "gelu_tanh": (lambda x: cpu.gelu(x, "tanh"), lambda x: elementwise.gelu(x, "tanh")),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_tactics(dtype, name):
    tactic, reference = ACTIVATIONS[name]
    x = (torch.randn(50, 37, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    kept = x.clone()
    together = tactic(x)
    assert torch.equal(x, kept), "the argument was written to"
    assert_close(together, reference(x))
    flat = together.view(-1)
    for start, count in [(0, 1), (3, 1), (17, 5), (100, 33), (1000, 700)]:
        assert torch.equal(tactic(x.view(-1)[start : start + count].clone()), flat[start : start + count])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(dtype, width):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(33, width, generator=generator).to(dtype)
    weight, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(2))
    rms = norm.rms_norm(x, weight, 1e-5)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(rms, exact.to(dtype))
    layer = norm.layer_norm(x, weight, bias, 1e-5)
    for start, count in [(0, 1), (32, 1), (5, 7), (1, 16)]:
        rows = slice(start, start + count)
        assert torch.equal(norm.rms_norm(x[rows], weight, 1e-5), rms[rows])
        assert torch.equal(norm.layer_norm(x[rows], weight, bias, 1e-5), layer[rows])


def test_rope_rotates_pairs_and_keeps_the_rest():
    table = rope.rope_table(10, 4, theta=100.0)
    x = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    out = rope.rope(x, torch.tensor([0, 9, 4], dtype=torch.int32), table)
    assert torch.equal(out[0], x[0]), "position 0 is the identity"
    assert torch.equal(out[..., 4:], x[..., 4:])
    as_complex = torch.complex(x[..., :2], x[..., 2:4])
    angle = torch.tensor([0.0, 9.0, 4.0])[:, None, None] * torch.tensor([1.0, 0.1])
    expected = as_complex * torch.polar(torch.ones_like(angle), angle)
    assert_close(out[..., :4], torch.cat((expected.real, expected.imag), -1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("head_dim, rotary_dim", [(8, 8), (37, 12), (64, 64)])
def test_rope_tactic_has_the_bits_of_the_reference(dtype, head_dim, rotary_dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(17, 3, head_dim, generator=generator).to(dtype)
    positions = torch.randint(100, (17,), generator=generator, dtype=torch.int32)
    table = rope.rope_table(100, rotary_dim)
    kept = x.clone()
    assert torch.equal(
        cpu_rope.rope(x, positions, table, cpu_rope.angles(x, positions, table)), rope.rope(x, positions, table)
    )
    assert torch.equal(x, kept), "the argument was written to"


def test_rope_errors():
    with pytest.raises(ShapeError, match="rotary_dim of at most head_dim=2"):
        rope.rope(torch.zeros(1, 1, 2), torch.zeros(1, dtype=torch.int32), rope.rope_table(2, 4))
    with pytest.raises(ShapeError, match="Invalid kind"):
        rope.rope_table(2, 4, kind="magic")


def test_arithmetic_broadcasts():
    x, y = torch.randn(3, 4), torch.randn(4)
    assert torch.equal(elementwise.add(x, y), x + y)
    assert torch.equal(elementwise.sub(x, 2.0), x - 2.0)
    assert torch.equal(elementwise.mul(x, y), x * y)
    assert torch.equal(elementwise.div(x, 4), x / 4)
    with pytest.raises(ShapeError, match="broadcast"):
        elementwise.add(torch.zeros(3, 4), torch.zeros(3))


def test_symbolic_sizes_flow_through_layout_ops():
    spec = TensorSpec(("num_tokens", 12), torch.float32)
    assert layout.view.check(spec, (-1, 3, 4)).shape == ("num_tokens", 3, 4)
    assert layout.permute.check(spec, (1, 0)).shape == (12, "num_tokens")
    assert layout.slice.check(spec, 1, 2, 5).shape == ("num_tokens", 3)
    assert layout.concat.check([spec, spec], 1).shape == ("num_tokens", 24)
    index = TensorSpec(("num_logits",), torch.int32)
    assert layout.index_select.check(spec, index).shape == ("num_logits", 12)
    for bad in [(3, 4), (-1, -1), (-1, 5), (-2, 12)]:
        with pytest.raises(ShapeError, match="Invalid shape"):
            layout.view.check(spec, bad)
    with pytest.raises(ShapeError, match="Invalid range"):
        layout.slice.check(spec, 0, 0, 1)


def test_layout_values():
    x = torch.arange(24.0).view(2, 12)
    assert torch.equal(layout.view(x, (-1, 3, 4)), x.view(2, 3, 4))
    assert layout.permute(x, (1, 0)).is_contiguous()
    assert torch.equal(layout.slice(x, -1, 2, 5), x[:, 2:5])
    assert torch.equal(layout.concat([x, x], 1), torch.cat((x, x), 1))
    assert layout.cast(x, "bfloat16").dtype == torch.bfloat16
    assert torch.equal(layout.index_select(x, torch.tensor([1, 1, 0])), x[[1, 1, 0]])


def test_every_op_has_a_reference_tactic_last_and_infers_what_it_returns():
    for name, op in OPS.items():
        assert tactics_for(name, "cpu")[-1].run is op.reference
        assert op.__doc__ and op.name == name
    with pytest.raises(TacticError, match=r"expected one of cpu, cuda, got 'nowhere'"):
        tactics_for("silu", "nowhere")


def test_wrong_arguments_name_the_op():
    with pytest.raises(ShapeError, match=r"silu: .*unexpected keyword argument 'y'"):
        elementwise.silu(torch.zeros(2), y=1)
