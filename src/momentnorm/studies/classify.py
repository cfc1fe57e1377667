"""Classifiers: small convolutional networks, and their training."""

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
    """Network of 3x3 convolutions with norm and ReLU, a global mean and a linear layer."""
    parts: list[nn.Module] = []
    inputs = 1
    for outputs, stride in zip(widths, strides, strict=True):
        # A norm subtracts the mean, so a bias before it would have no effect.
        parts += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none"),
            norm_layer(norm, outputs, layers),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Trained(NamedTuple):
    """Figures at the end of a training."""

    loss: float  # mean of the last epoch
    accuracy: float  # on held-out images


def train(
    model: nn.Module, data: Data, *, batch: int, epochs: int, lr: float, seed: int
) -> Trained:
    """Train by SGD with momentum 0.9 and a learning rate that falls to zero along a cosine.

    Args:
        lr: learning rate at the start for a batch of 32. It is proportional to the batch size
            (Goyal et al., arXiv 1706.02677).
        seed: seed of the order of the images.
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
    """Share of images that the model, in evaluation mode, classifies correctly."""
    model.eval()
    right: Tensor = model(images).argmax(1) == labels
    return right.float().mean().item()
