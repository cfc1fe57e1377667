"""Small classifiers, and their training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Data
from .layers import norm_layer


def classifier(
    widths: Sequence[int], strides: Sequence[int], classes: int, norm: str, layers: str
) -> nn.Sequential:
    """3x3 convolutions of these widths, each with norm and ReLU; global mean; a linear layer."""
    parts: list[nn.Module] = []
    inputs = 1
    for outputs, stride in zip(widths, strides, strict=True):
        # A norm takes the mean away, and with it any bias before it.
        parts += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none"),
            norm_layer(norm, outputs, layers),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Trained(NamedTuple):
    """How a training ended."""

    loss: float  # over the last epoch
    accuracy: float  # on images held out


def train(
    model: nn.Module, data: Data, *, batch: int, epochs: int, lr: float, seed: int
) -> Trained:
    """SGD with momentum 0.9, and a learning rate that falls to zero along a cosine.

    Args:
        lr: at the start, for a batch of 32; in proportion for others (Goyal et al.,
            arXiv 1706.02677).
        seed: of the order.
    """
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    each_epoch = len(data.images) // batch
    steps, done = each_epoch * epochs, 0
    losses: list[float] = []
    model.train()
    for _ in range(epochs):
        losses.clear()
        order = torch.randperm(len(data.images), generator=random)
        for index in order[: each_epoch * batch].view(each_epoch, batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * batch / 32 * 0.5 * (1 + math.cos(math.pi * done / steps))
            loss = F.cross_entropy(model(data.images[index]), data.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            done += 1
    return Trained(sum(losses) / len(losses), accuracy(model, data.test_images, data.test_labels))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model, in evaluation, names rightly."""
    model.eval()
    right: Tensor = model(images).argmax(1) == labels
    return right.float().mean().item()
