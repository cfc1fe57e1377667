"""Loss networks: a random one, and VGG from a file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..support.printable import one_line
from .errors import StylizeError

#: Weights of red, green and blue in luminance (ITU-R BT.601, as in JPEG).
LUMINANCE = (0.299, 0.587, 0.114)


def luminance(image: Tensor) -> Tensor:
    """Luminance of (..., 3, H, W), (..., 1, H, W)."""
    weights = torch.tensor(LUMINANCE, dtype=image.dtype, device=image.device)
    return (image * weights.view(3, 1, 1)).sum(-3, keepdim=True)


class Features(nn.Module):
    """Base of the loss networks: features of images at several depths, with frozen weights."""

    #: Name for messages and checkpoints.
    name = "loss network"

    def style_layers(self, image: Tensor) -> list[Tensor]:
        """Features of (N, 3, H, W) in [0, 1] at several depths, for the style loss."""
        raise NotImplementedError

    def content_layer(self, image: Tensor) -> Tensor:
        """Features of (N, 3, H, W) in [0, 1] at one depth, for the content loss."""
        raise NotImplementedError


class RandomFeatures(Features):
    """VGG's shape with random weights, calibrated on photographs. Nothing is downloaded.

    A network with random weights carries style, provided that its layers are balanced (He, Wang
    and Hopcroft, *A Powerful Generative Model Using Random Weights for the Deep Image
    Representation*, arXiv 1606.04801). Weights are orthogonal; then, layer by layer, each
    convolution is scaled and shifted such that its outputs over the photographs have zero mean and
    unit variance in every channel.

    Content is compared on luminance only, which leaves colour to the style.

    Args:
        photographs: (N, 3, H, W) in [0, 1].
        seed: seed of the weights.
    """

    name = "random network"
    CHANNELS = (32, 64, 128, 128)
    CONTENT_BLOCK = 2

    def __init__(self, photographs: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            x = photographs
            for inputs, outputs in itertools.pairwise((3, *self.CHANNELS)):
                first = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
                second = nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="reflect")
                for convolution in (first, second):
                    nn.init.orthogonal_(convolution.weight)
                    convolution.to(x)
                    x = _calibrate(convolution, x).relu()
                self.blocks.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()))
                x = F.avg_pool2d(x, 2)
        self.requires_grad_(False)

    def style_layers(self, image: Tensor) -> list[Tensor]:
        return self._through(image, len(self.blocks))

    def content_layer(self, image: Tensor) -> Tensor:
        grey = luminance(image).expand_as(image)
        return self._through(grey, self.CONTENT_BLOCK + 1)[-1]

    def _through(self, x: Tensor, count: int) -> list[Tensor]:
        layers: list[Tensor] = []
        for block in self.blocks[:count]:
            x = block(x if not layers else F.avg_pool2d(x, 2))
            layers.append(x)
        return layers


def _calibrate(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Scale a convolution to outputs of mean 0 and variance 1 over x; return these outputs."""
    assert convolution.bias is not None
    convolution.bias.zero_()
    y: Tensor = convolution(x)
    deviation, mean = torch.std_mean(y, (0, 2, 3), correction=0)  # (C,)
    deviation = deviation.clamp_min(1e-6)
    convolution.weight.div_(deviation.view(-1, 1, 1, 1))
    convolution.bias.copy_(-mean / deviation)
    result: Tensor = convolution(x)
    return result


class _VGGShape(NamedTuple):
    name: str
    convolutions: tuple[int, ...]  # in each block

    def keys_and_shapes(self) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of torchvision's ``features``, where ReLU and pools take an index too."""
        shapes: dict[str, tuple[int, ...]] = {}
        index, inputs = 0, 3
        for count, outputs in zip(self.convolutions, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                shapes[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
                shapes[f"features.{index}.bias"] = (outputs,)
                index, inputs = index + 2, outputs
            index += 1
        return shapes


_VGGS = (_VGGShape("VGG-16", (2, 2, 3, 3, 3)), _VGGShape("VGG-19", (2, 2, 4, 4, 4)))


class VGGFeatures(Features):
    """VGG-16 or VGG-19 with trained weights (Simonyan and Zisserman, arXiv 1409.1556).

    Style is compared at relu1_2, relu2_2, relu3_3 and relu4_3 (in VGG-19 relu3_4 and relu4_4),
    content at relu2_2.

    Args:
        state: torchvision's ``state_dict``, with or without the classifier. Which of the two it is
            shows in its keys.
    """

    MEAN = (0.485, 0.456, 0.406)
    DEVIATION = (0.229, 0.224, 0.225)
    BLOCKS = 4

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        state, shape = _check_vgg(state)
        keys = iter(key for key in shape.keys_and_shapes() if key.endswith("weight"))
        self.name = shape.name
        self.blocks = nn.ModuleList()
        for count in shape.convolutions[: self.BLOCKS]:
            block = nn.Sequential()
            for _ in range(count):
                weight_key = next(keys)
                weight = state[weight_key].float()
                convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                convolution.weight = nn.Parameter(weight)
                convolution.bias = nn.Parameter(
                    state[weight_key.removesuffix("weight") + "bias"].float()
                )
                block.extend([convolution, nn.ReLU()])
            self.blocks.append(block)
        self.register_buffer("mean", torch.tensor(self.MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(self.DEVIATION).view(3, 1, 1))
        self.requires_grad_(False)

    def style_layers(self, image: Tensor) -> list[Tensor]:
        x = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        layers: list[Tensor] = []
        for block in self.blocks:
            x = block(x if not layers else F.max_pool2d(x, 2))
            layers.append(x)
        return layers

    def content_layer(self, image: Tensor) -> Tensor:
        x = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        result: Tensor = self.blocks[1](F.max_pool2d(self.blocks[0](x), 2))
        return result


def _check_vgg(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], _VGGShape]:
    """State with torchvision's keys, and the VGG that it is of."""
    wanted = "torchvision's state_dict of vgg16 or vgg19 (without _bn)"
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise StylizeError(f"this is not a state_dict of tensors: give {wanted}")
    if "0.weight" in state:  # of `model.features` alone
        state = {f"features.{key}": value for key, value in state.items()}
    found = {key for key in state if not key.startswith("classifier.")}
    for shape in _VGGS:
        expected = shape.keys_and_shapes()
        if found != set(expected):
            continue
        for key, size in expected.items():
            if tuple(state[key].shape) != size:
                raise StylizeError(
                    f"{key} has shape {tuple(state[key].shape)}, and {shape.name} needs {size}: "
                    f"give {wanted}"
                )
        return state, shape
    raise StylizeError(f"the keys are those of neither VGG-16 nor VGG-19: give {wanted}")


def load_vgg(path: str | Path) -> VGGFeatures:
    """VGG-16 or VGG-19 from a ``.pth`` of tensors alone (``weights_only``), or a safetensors file.

    Raises:
        StylizeError: no such file, not such a file, or another network's.
    """
    path = Path(path)
    if not path.is_file():
        raise StylizeError(f"{path}: no such file; --vgg takes a torchvision VGG state_dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return VGGFeatures(state)
    except StylizeError as error:
        raise StylizeError(f"{path}: {error}") from error
    except Exception as error:
        # torch.load raises whatever the damaged bytes happen to lead to.
        raise StylizeError(
            f"{path}: not a file of tensors ({one_line(error)[:120]}); "
            "save one with torch.save(torchvision.models.vgg16(...).state_dict(), FILE)"
        ) from error
