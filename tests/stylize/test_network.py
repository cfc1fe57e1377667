"""The network's shape, and the property for which Instance Normalization was invented."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from momentnorm import InstanceNorm2d
from momentnorm.stylize import StylizeError, stylize
from momentnorm.stylize.apply import reflected
from momentnorm.stylize.network import NORMS, Architecture, Network
from support.stylize_samples import small_network


def exact_network(norm: str) -> Network:
    """float64 with the least eps: what is left of it in the outputs is far below the tolerance."""
    network = small_network(norm).double()
    for module in network.modules():
        if isinstance(module, (nn.InstanceNorm2d, nn.BatchNorm2d)):
            module.eps = 1e-12
    return network


def photograph(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 24, 20, dtype=torch.float64, generator=torch.manual_seed(seed))


@given(
    a=st.floats(0.1, 4.0),
    b=st.floats(-2.0, 2.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_instance_norm_does_not_see_brightness_and_contrast(a, b, seed):
    network, x = exact_network("instance"), photograph(seed)
    with torch.no_grad():
        # eps / var is at most 1e-8 here, and there are 8 norms.
        torch.testing.assert_close(network(a * x + b), network(x), rtol=0, atol=1e-6)


def test_batch_norm_sees_them():
    network, x = exact_network("batch"), photograph(0)
    with torch.no_grad():
        network.train()(x)  # running statistics of this very photograph
        network.eval()
        assert (network(0.5 * x + 0.25) - network(x)).abs().max() > 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_and_range(norm):
    network = small_network(norm)
    x = torch.rand(2, 3, 20, 36)
    y = network(x)
    assert y.shape == x.shape
    assert 0 <= y.min() < y.max() <= 1


def test_the_norms_are_the_ones_named():
    kinds = {
        "instance": InstanceNorm2d,
        "batch": nn.BatchNorm2d,
        "group": nn.GroupNorm,
        "layer": nn.GroupNorm,
        "none": nn.Identity,
    }
    for norm, kind in kinds.items():
        found = [m for m in small_network(norm).modules() if isinstance(m, kind)]
        assert len(found) == 5 + 2, norm
    assert NORMS["layer"](16).num_groups == 1
    assert NORMS["group"](32).num_groups == 4
    assert NORMS["group"](4).num_groups == 1


def test_size_of_the_usual_network():
    network = Network(Architecture())
    assert sum(parameter.numel() for parameter in network.parameters()) == 276_131


def test_unknown_architectures():
    with pytest.raises(StylizeError, match="choose one of instance, batch"):
        Architecture("weight")
    for width, blocks in ((0, 1), (1000, 1), (16, -1)):
        with pytest.raises(StylizeError, match="out of range"):
            Architecture("instance", width, blocks)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 4), (17, 30), (3, 500)])
def test_any_size(size):
    for shape in ((3, *size), (2, 3, *size)):
        image = torch.rand(shape)
        picture = stylize(image, small_network())
        assert picture.shape == image.shape
        assert picture.isfinite().all()


def test_a_batch_is_its_images():
    images = torch.rand(2, 3, 17, 22)
    both = stylize(images, small_network())
    for image, picture in zip(images, both, strict=True):
        torch.testing.assert_close(stylize(image, small_network()), picture, rtol=0, atol=1e-5)


def test_reflection():
    assert reflected(1, 2, 3).tolist() == [0] * 6
    assert reflected(2, 3, 2).tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert reflected(4, 2, 5).tolist() == [2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_strength():
    image, network = torch.rand(3, 13, 18), small_network()
    full = stylize(image, network)
    assert torch.equal(stylize(image, network, strength=0), image)
    torch.testing.assert_close(stylize(image, network, strength=0.25), 0.75 * image + 0.25 * full)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(StylizeError, match="between 0 and 1"):
            stylize(image, network, strength=wrong)


def test_keep_color():
    image, network = 0.4 + 0.1 * torch.rand(3, 13, 18), small_network()
    with torch.no_grad():
        network.leave.weight.mul_(0.1)  # away from black and white, where clipping changes chroma
        network.leave.bias.zero_()
    picture, kept = stylize(image, network), stylize(image, network, keep_color=True)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((kept * weights).sum(0), (picture * weights).sum(0))
    torch.testing.assert_close(kept - kept.mean(0), image - image.mean(0))
    assert (kept - picture).abs().max() > 0.01


def test_results_are_ordinary_tensors():
    picture = stylize(torch.rand(3, 8, 8), small_network())
    assert not picture.is_inference()
    (picture * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_leave_the_style_as_it_was(dtype):
    image, network = torch.rand(3, 12, 16), small_network()
    expected = stylize(image, network)
    picture = stylize(image.to(dtype), network)
    assert picture.dtype == dtype
    # A photograph in bfloat16 has 8 bits, and contrast amplifies its rounding.
    torch.testing.assert_close(picture.float(), expected, rtol=0, atol=0.1)
    assert torch.equal(stylize(image, network), expected)


def test_wrong_tensors():
    for shape in ((1, 8, 8), (8, 8), (3, 0, 8), (2, 4, 8, 8)):
        with pytest.raises(StylizeError, match="channels first"):
            stylize(torch.zeros(shape), small_network())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_names_the_fix(monkeypatch, error):
    def fails(self, x):
        raise error

    monkeypatch.setattr(Network, "forward", fails)
    with pytest.raises(StylizeError, match="--size 20"):
        stylize(torch.rand(3, 30, 40), small_network())


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def fails(self, x):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Network, "forward", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        stylize(torch.rand(3, 30, 40), small_network())
