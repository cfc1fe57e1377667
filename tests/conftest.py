"""Fixtures of every test: the backends, and the same random numbers each time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

import stand_in
from chromium import browser  # noqa: F401 - a fixture
from explore_page import address, visit  # noqa: F401 - fixtures
from momentnorm import _dispatch, use_backend

# Last, after the reference that takes every call: nothing reaches it unless asked for by name.
_dispatch.BACKENDS = (*_dispatch.BACKENDS, stand_in)

# The same examples each time, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Tensors here are tiny: threads would spend the time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "stand_in", "reference"])
def backend(request):
    """The name of the backend that takes the calls of this test."""
    if request.param == "cpu" and _dispatch._by_name("cpu").refuses(torch.zeros(1, 1, 2)):
        pytest.skip("the CPU kernels are not built, or do not load")
    with use_backend(request.param):
        yield request.param
