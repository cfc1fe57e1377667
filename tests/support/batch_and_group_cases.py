"""Cases of BatchNorm and GroupNorm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from momentnorm.functional import batch_norm, group_norm
from support.layouts import LAYOUTS

in_both_modes = pytest.mark.parametrize("training", [True, False])


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


STATS = torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)


#: name: our function and torch's, both of x, weight, bias and our options.
FUNCTIONS = {
    "batch_norm": (
        lambda x, w, b, **o: batch_norm(x, None, None, w, b, True, **o),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    ),
    "batch_norm in eval": (
        lambda x, w, b, **o: batch_norm(x, *STATS, w, b, **o),
        lambda x, w, b: F.batch_norm(x, *(s.to(x.dtype) for s in STATS), w, b),
    ),
    **{
        f"group_norm of {groups}": (
            lambda x, w, b, groups=groups, **o: group_norm(x, groups, w, b, **o),
            lambda x, w, b, groups=groups: F.group_norm(x, groups, w, b),
        )
        for groups in (1, 2, 6)
    },
}


every_function = pytest.mark.parametrize("name", FUNCTIONS)


def make_operands(shape, dtype, layout="contiguous", parameters=None):
    """x, weight, bias and residual, a gradient, and contiguous float64 copies of the first four."""
    shapes = (shape, shape[1:2], shape[1:2], shape, shape)
    x, weight, bias, residual, gradient = (torch.randn(s, dtype=torch.float64) for s in shapes)
    ours = [
        LAYOUTS[layout]((3 * x + 2).to(dtype)),
        (weight.abs() + 0.5).to(parameters or dtype),
        bias.to(parameters or dtype),
        LAYOUTS[layout](residual.to(dtype)),
    ]
    ours = [t.detach().requires_grad_() for t in ours]
    twins = [t.detach().double().contiguous().requires_grad_() for t in ours]
    return ours, LAYOUTS[layout](gradient.to(dtype)), twins
