"""Fixtures of every test: the backends, and repeatable random numbers."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import settings

from momentnorm import use_backend
from momentnorm.core import dispatch
from momentnorm.core.backends import cpu
from support import stand_in
from support.chromium import browser  # noqa: F401 - a fixture
from support.explore_page import address, visit  # noqa: F401 - fixtures

# Keras reads it when it is imported; the kernels serve Keras on torch.
os.environ.setdefault("KERAS_BACKEND", "torch")

# The reference takes every call, so a backend after it takes calls by its name alone.
dispatch.BACKENDS = (*dispatch.BACKENDS, stand_in)

# Repeatable examples, without limits of time.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Background jobs of a shell ignore Ctrl-C. The processes that tests stop by it must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _start():
    """Start each test with the same random numbers and one thread.

    Tensors in tests are tiny, so more threads would be slower.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


torch.set_num_threads(1)  # for tensors that are made while tests are collected


@pytest.fixture(params=["cpu", "stand_in", "reference"])
def backend(request):
    """Name of the backend that takes the calls of this test."""
    if request.param == "cpu" and dispatch.backend_named("cpu").refuses(torch.zeros(1, 1, 2)):
        pytest.skip("the CPU kernels are not built, or do not load")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def restored():
    """Restore the instruction set and the number of threads after a test."""
    instruction_set, threads = cpu.instruction_set(), torch.get_num_threads()
    yield
    cpu.choose_instruction_set(instruction_set)
    torch.set_num_threads(threads)
