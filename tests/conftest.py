"""Fixtures of every test: the backends, and the same random numbers each time."""

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

# Last, after the reference that takes every call: nothing reaches it unless asked for by name.
dispatch.BACKENDS = (*dispatch.BACKENDS, stand_in)

# The same examples each time, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tensors here are tiny: threads would spend the time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "stand_in", "reference"])
def backend(request):
    """The name of the backend that takes the calls of this test."""
    if request.param == "cpu" and dispatch._by_name("cpu").refuses(torch.zeros(1, 1, 2)):
        pytest.skip("the CPU kernels are not built, or do not load")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def restored():
    """Leaves the instruction set and the thread count as they were."""
    instruction_set, threads = cpu.instruction_set(), torch.get_num_threads()
    yield
    cpu.choose_instruction_set(instruction_set)
    torch.set_num_threads(threads)
