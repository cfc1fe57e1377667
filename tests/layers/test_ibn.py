"""IBN against instance norm beside batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from momentnorm import (
    IBN,
)
from support.layouts import LAYOUTS
from support.relatives_cases import randomize


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("ratio", "first"), [(0.5, 3), (0.3, 2)])
def test_ibn_is_instance_norm_beside_batch_norm(backend, training, layout, ratio, first):
    layer = randomize(IBN(7, ratio)).train(training)
    twin = copy.deepcopy(layer).double()
    x = LAYOUTS[layout](torch.randn(4, 7, 5, 4) + 2).requires_grad_()
    leaf = x.detach().double().contiguous().requires_grad_()
    z = torch.cat(
        (
            F.instance_norm(leaf[:, :first], weight=twin.IN.weight, bias=twin.IN.bias),
            F.batch_norm(
                leaf[:, first:],
                twin.BN.running_mean.clone(),
                twin.BN.running_var.clone(),
                twin.BN.weight,
                twin.BN.bias,
                training,
            ),
        ),
        1,
    )
    y = layer(x)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    wanted = torch.autograd.grad(z, [leaf, *twin.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)


def test_checkpoints_of_ibn_are_the_authors():
    assert {name: tuple(value.shape) for name, value in IBN(7).state_dict().items()} == {
        "IN.weight": (3,),
        "IN.bias": (3,),
        "BN.weight": (4,),
        "BN.bias": (4,),
        "BN.running_mean": (4,),
        "BN.running_var": (4,),
        "BN.num_batches_tracked": (),
    }


def test_ibn_refuses():
    for ratio in (0, 0.1, 1):
        with pytest.raises(ValueError, match="both norms need a channel"):
            IBN(4, ratio)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        IBN(4)(torch.randn(2, 5, 3, 3))
