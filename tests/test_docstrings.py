"""The examples of the docstrings are what one sees."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import momentnorm
from momentnorm.core.backends import cpu

SOURCE = Path(momentnorm.__file__).parent
MODULES = [
    ".".join(("momentnorm", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text()
]


def _examples():
    finder = doctest.DocTestFinder()
    for name in MODULES:
        module = importlib.import_module(name)
        names = {"torch": torch, **vars(momentnorm), **vars(module)}
        for test in finder.find(module, extraglobs=names):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.filterwarnings("ignore:load_legacy")  # that it warns is a part of the example
@pytest.mark.parametrize("test", list(_examples()))
def test_example(test):
    if ".models.accelerate." in test.name and cpu.unavailable():
        pytest.skip("without kernels every layer is kept")
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_every_public_class_has_an_example():
    documented = {parameter.id.split(".")[-1] for parameter in _examples()}
    ours = [
        name
        for name in momentnorm.__all__
        if isinstance(getattr(momentnorm, name), type)
        and getattr(momentnorm, name).__module__.startswith("momentnorm.")
        and not name.startswith("Lazy")
    ]
    assert set(ours) <= documented
