"""The losses against their formulas, and the networks whose features they compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from momentnorm.stylize import StylizeError
from momentnorm.stylize.features import RandomFeatures, VGGFeatures, load_vgg, luminance
from momentnorm.stylize.losses import (
    StyleStatistics,
    content_loss,
    random_filters,
    sliced_loss,
    style_loss,
    style_statistics,
    total_variation,
)


def test_statistics_are_mean_and_covariance():
    features = torch.randn(2, 3, 5, 7, dtype=torch.float64) + 10
    found = style_statistics(features)
    for sample, mean, covariance in zip(features, *found, strict=True):
        planes = sample.flatten(1)
        torch.testing.assert_close(mean, planes.mean(1))
        torch.testing.assert_close(covariance, torch.cov(planes, correction=0))


def test_style_loss_is_relative():
    features = [torch.zeros(1, 2, 3, 3)]
    target = StyleStatistics(torch.tensor([[3.0, 4.0]]), torch.eye(2).unsqueeze(0) * 7)
    assert style_loss(features, [target]).item() == pytest.approx(2.0)
    features = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)]
    assert style_loss(features, [target]).item() == pytest.approx(1.0)


def test_style_loss_of_the_picture_itself_is_zero():
    features = [torch.randn(1, 4, 6, 6), torch.randn(1, 8, 3, 3)]
    targets = [style_statistics(layer) for layer in features]
    assert style_loss(features, targets).item() == 0
    permuted = [layer.flatten(2).flip(2).view(layer.shape) for layer in features]
    assert style_loss(permuted, targets).item() < 1e-6, "where does not matter"


def test_sliced_loss_compares_distributions():
    random = torch.Generator().manual_seed(0)
    filters = random_filters(5, 3, 1, random)
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(5))
    edges = random_filters(5, 3, 3, random)
    torch.testing.assert_close(edges.mean((2, 3)), torch.zeros(5, 3), rtol=0, atol=1e-6)

    def loss(image: Tensor, target: Tensor) -> float:
        return sliced_loss(image, target, filters, 10_000, random).item()

    target = torch.rand(1, 3, 40, 40)
    assert loss(target, target) == 0
    shuffled = target.flatten(2)[:, :, torch.randperm(1600)].view(1, 3, 40, 40)
    assert loss(shuffled, target) < 1e-10, "where does not matter"
    # Two values and a continuum of the same mean and variance.
    two = torch.randint(2, (1, 3, 40, 40)).float()
    even = (torch.rand(1, 3, 40, 40) - 0.5) * 3**0.5 + 0.5
    assert loss(even, two) > 0.05


def test_sliced_loss_along_one_axis():
    filters = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    target = torch.rand(1, 3, 20, 20)
    moved = target + torch.tensor([0.3, 5.0, 5.0]).view(3, 1, 1)
    found = sliced_loss(moved, target, filters, 400, torch.Generator().manual_seed(0)).item()
    expected = 0.3**2 / (target[:, 0].var(correction=0) + 1e-4)
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_content_loss_is_relative_to_the_variance():
    target = torch.randn(2, 3, 6, 6)
    assert content_loss(target, target).item() == 0
    mean = target.mean().expand_as(target)
    assert content_loss(mean, target).item() == pytest.approx(1.0)
    assert content_loss(10 * mean, 10 * target).item() == pytest.approx(1.0, rel=1e-5)


def test_total_variation():
    ramp = (torch.arange(5.0) * 0.1).expand(1, 3, 4, 5)
    assert total_variation(ramp).item() == pytest.approx(0.1)
    assert total_variation(torch.ones(1, 3, 4, 5)).item() == 0


def test_luminance():
    image = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    assert luminance(image).item() == pytest.approx(0.299 + 0.5 * 0.587)


def test_random_features_are_calibrated():
    photographs = torch.rand(4, 3, 32, 32)
    features = RandomFeatures(photographs, seed=3)
    x = photographs
    for index, block in enumerate(features.blocks):
        if index:
            x = torch.nn.functional.avg_pool2d(x, 2)
        for module in block:
            x = module(x)
            if isinstance(module, torch.nn.Conv2d):
                deviation, mean = torch.std_mean(x, (0, 2, 3), correction=0)
                torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
                torch.testing.assert_close(deviation, torch.ones_like(mean), rtol=0, atol=1e-4)


def test_random_features_depend_on_the_seed_alone():
    photographs = torch.rand(2, 3, 32, 32)
    before = torch.random.get_rng_state()
    first, again = (RandomFeatures(photographs, seed=1).state_dict() for _ in range(2))
    other = RandomFeatures(photographs, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["blocks.0.0.weight"], other["blocks.0.0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_features_have_no_gradient_of_their_own():
    features = RandomFeatures(torch.rand(2, 3, 32, 32))
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    layers = features.style_layers(image)
    assert [layer.shape[1:] for layer in layers] == [
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (128, 4, 4),
    ]
    (layers[-1].sum() + features.content_layer(image).sum()).backward()
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in features.parameters())


def test_content_ignores_colour():
    features = RandomFeatures(torch.rand(2, 3, 32, 32))
    image = torch.rand(1, 3, 32, 32)
    grey = luminance(image).expand_as(image)
    torch.testing.assert_close(features.content_layer(image), features.content_layer(grey))


VGG_BLOCKS = {"VGG-16": (2, 2, 3, 3, 3), "VGG-19": (2, 2, 4, 4, 4)}


def vgg_state(name: str) -> dict[str, Tensor]:
    """Keys and shapes of torchvision's, in memory one number per tensor."""
    state, index, inputs = {}, 0, 3
    for count, outputs in zip(VGG_BLOCKS[name], (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            state[f"features.{index}.weight"] = torch.zeros(1).expand(outputs, inputs, 3, 3)
            state[f"features.{index}.bias"] = torch.zeros(1).expand(outputs)
            index, inputs = index + 2, outputs
        index += 1
    return state


def test_vgg_keys_are_those_of_torchvision():
    indices = [int(key.split(".")[1]) for key in vgg_state("VGG-16") if key.endswith("weight")]
    assert indices == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    indices = [int(key.split(".")[1]) for key in vgg_state("VGG-19") if key.endswith("weight")]
    assert indices == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]


@pytest.mark.parametrize("name", VGG_BLOCKS)
@pytest.mark.parametrize("classifier", [False, True])
def test_vgg_is_recognised(tmp_path, name, classifier):
    state = vgg_state(name)
    if classifier:
        state["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg.pth"
    torch.save(state, path)  # saves the one number of each tensor, since they are expanded
    assert path.stat().st_size < 100_000
    features = load_vgg(path)
    assert features.name == name
    image = torch.rand(1, 3, 32, 32)
    channels_and_sizes = [layer.shape[1:3] for layer in features.style_layers(image)]
    assert channels_and_sizes == [(64, 32), (128, 16), (256, 8), (512, 4)]
    assert features.content_layer(image).shape == (1, 128, 16, 16)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_vgg_weights_are_used():
    state = vgg_state("VGG-16")
    random = torch.manual_seed(0)
    state["features.0.weight"] = torch.randn(64, 3, 3, 3, generator=random)
    state["features.0.bias"] = torch.randn(64, generator=random)
    identity = torch.zeros(64, 64, 3, 3)
    identity[torch.arange(64), torch.arange(64), 1, 1] = 1
    state["features.2.weight"] = identity
    image = torch.rand(1, 3, 8, 8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = torch.nn.functional.conv2d(
        (image - mean) / deviation, state["features.0.weight"], state["features.0.bias"], padding=1
    ).relu()
    torch.testing.assert_close(VGGFeatures(state).style_layers(image)[0], expected)


def test_vgg_features_alone_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = {key.removeprefix("features."): v.clone() for key, v in vgg_state("VGG-16").items()}
    save_file(state, tmp_path / "vgg.safetensors")
    assert load_vgg(tmp_path / "vgg.safetensors").name == "VGG-16"


def test_wrong_vgg_files(tmp_path):
    path = tmp_path / "vgg.pth"
    with pytest.raises(StylizeError, match="no such file"):
        load_vgg(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(StylizeError, match="not a file of tensors"):
        load_vgg(path)
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(StylizeError, match="neither VGG-16 nor VGG-19"):
        load_vgg(path)
    torch.save([1, 2], path)
    with pytest.raises(StylizeError, match="state_dict"):
        load_vgg(path)
    torch.save(vgg_state("VGG-16") | {"features.0.bias": torch.zeros(3)}, path)
    with pytest.raises(StylizeError, match=r"features\.0\.bias has shape \(3,\).* needs \(64,\)"):
        load_vgg(path)
    torch.save(vgg_state("VGG-16") | {"features.1.running_mean": torch.zeros(64)}, path)
    with pytest.raises(StylizeError, match="without _bn"):
        load_vgg(path)


def test_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    path = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(StylizeError, match="not a file of tensors"):
        load_vgg(path)
    assert not (tmp_path / "pwned").exists()
