"""The trunk against torch's operators, and its styles as vectors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from momentnorm.stylize import StylizeError
from momentnorm.stylize.trunk import Trunk, TrunkShape
from support.stylize_samples import SHAPE, random_vectors, small_trunk


def by_definition(trunk: Trunk, image: Tensor, style: Tensor) -> Tensor:
    """The network of one style in torch's own operators; the last convolution is 5x5."""
    rest = style

    def take(count: int) -> Tensor:
        nonlocal rest
        taken, rest = rest[:count], rest[count:]
        return taken

    def norm(x: Tensor) -> Tensor:
        weight, bias = take(x.shape[1]), take(x.shape[1])
        return F.instance_norm(x, weight=weight, bias=bias)

    wide = F.pad(image, [4] * 4, mode="reflect")
    x = F.relu(norm(F.conv2d(wide, trunk.enter.weight, stride=2)))
    x = F.relu(norm(F.conv2d(x, trunk.down.weight, stride=2, padding=1)))
    for first, second in zip(trunk.residual[::2], trunk.residual[1::2], strict=True):
        y = F.relu(norm(F.conv2d(x, first.weight, padding=1)))
        x = x + norm(F.conv2d(y, second.weight, padding=1))
    x = F.relu(norm(F.conv2d(F.interpolate(x, scale_factor=2.0), trunk.up.weight, padding=1)))
    kernel = take(3 * SHAPE.width * 25).view(3, SHAPE.width, 5, 5)
    x = F.conv2d(F.interpolate(x, scale_factor=2.0), kernel, take(3), padding=2)
    assert not len(rest)
    return torch.sigmoid(x)


def test_trunk_is_its_definition():
    trunk, (style,) = small_trunk().double(), random_vectors(1).double()
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(trunk(image, style), by_definition(trunk, image, style))


def test_trunk_does_not_see_brightness_and_contrast():
    trunk, (style,) = small_trunk().double(), random_vectors(1).double()
    image = 100 * torch.rand(1, 3, 16, 16, dtype=torch.float64)  # beside which eps is small
    found = trunk(0.5 * image + 30, style)
    torch.testing.assert_close(found, trunk(image, style), rtol=0, atol=1e-6)


def test_each_sample_may_have_a_style_of_its_own():
    trunk, styles = small_trunk().double(), random_vectors(3).double()
    image = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    alone = [trunk(image[i : i + 1], styles[i]) for i in range(3)]
    torch.testing.assert_close(trunk(image, styles), torch.cat(alone))


def test_gradients_reach_the_style():
    trunk, style = small_trunk().double(), random_vectors(2).double().requires_grad_()
    image = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    (found,) = torch.autograd.grad(trunk(image, style).square().sum(), style)
    expected = []
    for index in range(2):
        one = style[index].detach().requires_grad_()
        by_definition(trunk, image[index : index + 1], one).square().sum().backward()
        expected.append(one.grad)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_new_style_leaves_the_norms_alone():
    style = small_trunk().new_style()
    assert style.shape == (SHAPE.numbers,)
    assert style[:4].tolist() == [1.0] * 4
    assert style[4:8].tolist() == [0.0] * 4


def test_a_shape_out_of_range_is_refused():
    with pytest.raises(StylizeError, match="width is 1 to 256"):
        TrunkShape(width=0)
