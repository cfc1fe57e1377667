"""The trunk against torch's operators, its styles as vectors, and their files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from momentnorm.stylize import StylizeError
from momentnorm.stylize.trunk import Trunk, TrunkShape
from momentnorm.stylize.trunk_files import (
    TrunkStyle,
    load_trunk,
    load_trunk_style,
    save_trunk,
    save_trunk_style,
    trunk_identity,
)

SHAPE = TrunkShape(width=4, blocks=2)


def small_trunk(seed: int = 0) -> Trunk:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Trunk(SHAPE)


def random_styles(count: int, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, SHAPE.numbers, generator=random)


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
    trunk, (style,) = small_trunk().double(), random_styles(1).double()
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(trunk(image, style), by_definition(trunk, image, style))


def test_trunk_does_not_see_brightness_and_contrast():
    trunk, (style,) = small_trunk().double(), random_styles(1).double()
    image = 100 * torch.rand(1, 3, 16, 16, dtype=torch.float64)  # beside which eps is small
    found = trunk(0.5 * image + 30, style)
    torch.testing.assert_close(found, trunk(image, style), rtol=0, atol=1e-6)


def test_each_sample_may_have_a_style_of_its_own():
    trunk, styles = small_trunk().double(), random_styles(3).double()
    image = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    alone = [trunk(image[i : i + 1], styles[i]) for i in range(3)]
    torch.testing.assert_close(trunk(image, styles), torch.cat(alone))


def test_gradients_reach_the_style():
    trunk, style = small_trunk().double(), random_styles(2).double().requires_grad_()
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


def test_files_give_back_the_trunk_and_its_style(tmp_path):
    trunk = small_trunk()
    save_trunk(trunk, tmp_path / "trunk.safetensors")
    found = load_trunk(tmp_path / "trunk.safetensors")
    for key, value in trunk.state_dict().items():
        assert torch.equal(found.state_dict()[key], value.half().float())
    assert trunk_identity(found) == trunk_identity(trunk)
    (vector,) = random_styles(1)
    style = TrunkStyle(vector, trunk_identity(trunk), picture="a picture")
    save_trunk_style(style, tmp_path / "own.safetensors")
    again = load_trunk_style(tmp_path / "own.safetensors", found)
    assert torch.equal(again.vector, vector.half().float())
    assert (again.name, again.picture) == ("own", "a picture")
    assert again.license.startswith("Apache-2.0")


def test_a_style_of_another_trunk_is_refused(tmp_path):
    path = tmp_path / "own.safetensors"
    (vector,) = random_styles(1)
    save_trunk_style(TrunkStyle(vector, trunk_identity(small_trunk(1))), path)
    with pytest.raises(StylizeError, match="learn the style again on this trunk"):
        load_trunk_style(path, small_trunk())
    with pytest.raises(StylizeError, match="numbers; learn the style again"):
        load_trunk_style(path, Trunk(TrunkShape(width=5, blocks=2)))
    vector[3] = float("nan")
    save_trunk_style(TrunkStyle(vector, trunk_identity(small_trunk())), path)
    with pytest.raises(StylizeError, match="is not finite"):
        load_trunk_style(path, small_trunk())


def test_other_files_are_refused(tmp_path, style_file):
    with pytest.raises(StylizeError, match="no such file"):
        load_trunk(tmp_path / "none.safetensors")
    with pytest.raises(StylizeError, match="not a trunk file"):
        load_trunk(style_file)
    with pytest.raises(StylizeError, match="not a style file"):
        load_trunk_style(style_file, small_trunk())
    with pytest.raises(StylizeError, match="no-such: no such file; give a style file or one of"):
        load_trunk_style("no-such", small_trunk())
