"""Fixtures of the tests of models."""

from __future__ import annotations

import pytest
import torch

from support.models import MODELS


@pytest.fixture(params=MODELS)
def network(request):
    """Network, an input, and its numbers of swapped and of fused layers."""
    build, shape, swapped, fused = MODELS[request.param]
    return build(), torch.randn(shape), swapped, fused
