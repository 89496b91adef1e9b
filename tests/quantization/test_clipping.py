"""Clipping: the shares found leave the smallest error of the layer's output, group by group."""

import torch

from quire.ops.quantize import dequantize_int4, quantize_weight_int4
from quire.quantization.clipping import best_shares, products_of_groups


def case(seed=0, out_features=6, in_features=24, group_size=8):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    weight[0, 3] = 9.0  # one weight that would waste the range of its group
    x = torch.randn(50, in_features, generator=generator)
    x[:, 3] *= 0.01  # and that hardly matters
    return weight, x, group_size


def test_products_are_those_of_each_group():
    _, x, size = case()
    factors = torch.rand(24, generator=torch.Generator().manual_seed(1)) + 0.5
    found = products_of_groups([x[:20].view(4, 5, 24), x[20:]], size, factors)
    scaled = x / factors
    for group in range(3):
        part = scaled[:, group * size : (group + 1) * size]
        torch.testing.assert_close(found[group], part.t() @ part)


def test_shares_leave_the_smallest_error_of_every_group():
    weight, x, size = case()
    shares = best_shares(weight, products_of_groups([x], size, None))
    assert shares[0, 0] < 0.9, "the group with the large weight that hardly matters is clipped"

    def errors(given):
        change = dequantize_int4(*quantize_weight_int4(weight, size, shares=given)) - weight
        return torch.stack([(x[:, g : g + size] @ change[:, g : g + size].t()).square().sum(0)
                            for g in range(0, 24, size)], 1)  # fmt: skip

    best = errors(shares)
    for share in (1.0, 0.95, 0.8, 0.65, 0.5):
        assert (best <= errors(torch.full_like(shares, share)) * (1 + 1e-5)).all()


def test_all_shares_of_one_change_nothing():
    weight, _, size = case()
    for a, b in zip(quantize_weight_int4(weight, size), quantize_weight_int4(weight, size, shares=torch.ones(6, 3)),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
