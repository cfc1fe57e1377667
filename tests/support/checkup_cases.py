"""Cases for the tests of check: a small network, its input, and a short form of a report."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import momentnorm

LIBRARIES = {"torch": nn, "momentnorm": momentnorm}
every_library = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)


def convolution(inputs=8, outputs=8, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)


def two_blocks(norm, second=None):
    """Network of two blocks of convolution, norm and ReLU, with norms ``stem.1`` and ``body.1``."""
    stem = nn.Sequential(convolution(3), norm(), nn.ReLU())
    body = nn.Sequential(convolution(), (second or norm)(), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=stem, body=body, head=nn.Conv2d(8, 2, 1)))


def trained(model, *inputs):
    """Model in eval mode, with the running statistics of these inputs."""
    model.train()
    with torch.no_grad():
        for _ in range(60):
            model(*inputs)
    return model.eval()


def noise(*shape):
    """Random input of this shape, by default of :func:`two_blocks`."""
    return torch.randn(shape or (8, 3, 16, 16))


def summary(report):
    """Severity, kind and layer of each finding."""
    return [(finding.severity, finding.kind, finding.layer) for finding in report]


def scaled(factor):
    """Change of a network that multiplies the input of ``body.1``."""

    def change(model):
        model.body[0].weight.data *= factor

    return change
