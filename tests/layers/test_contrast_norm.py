"""Contrast Normalization against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from momentnorm import (
    ContrastNorm2d,
)
from support.layouts import LAYOUTS
from support.relatives_cases import LAYOUT_NAMES
from support.tolerances import OUTPUT, assert_within


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_contrast_norm_is_its_formula(layout, dtype):
    x = LAYOUTS[layout](torch.rand(2, 3, 5, 4).to(dtype))
    z = torch.stack(
        [
            torch.stack([plane / (plane.sum() + 0.5) for plane in sample])
            for sample in x.double().contiguous()
        ]
    )
    y = ContrastNorm2d(eps=0.5)(x)
    assert_within(y, z, OUTPUT)
    if layout != "sliced":
        assert y.stride() == x.stride()


def test_contrast_norm_has_derivatives_of_both_orders():
    x = torch.rand(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ContrastNorm2d(), x)
    assert gradgradcheck(ContrastNorm2d(), x)


def test_a_sum_of_zero():
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1] = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert ContrastNorm2d()(x)[0, 0].isnan().all()
    assert ContrastNorm2d()(x)[0, 1, 0].isinf().all()
    assert torch.equal(ContrastNorm2d(eps=0.5)(x), 2 * x)
    assert repr(ContrastNorm2d()) == "ContrastNorm2d(eps=0.0)"
    with pytest.raises(ValueError, match="expected 4D input"):
        ContrastNorm2d()(x[0])
