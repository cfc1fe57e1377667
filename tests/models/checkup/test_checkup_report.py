"""The report of check: as text, as data, and on its page of the documentation."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from momentnorm import check
from momentnorm.models.checkup import KINDS, Finding, Report
from support.checkup_cases import (
    every_library,
    noise,
    scaled,
    summary,
    two_blocks,
)


@every_library
def test_a_shared_layer_is_one_finding(library):
    norm = library.InstanceNorm2d(8)
    model = two_blocks(lambda: norm)
    scaled(1e-3)(model)
    report = check(model, noise())
    assert (report.layers, report.calls) == (1, 2)
    assert summary(report) == [("warning", "eps", "stem.1")]
    assert "(in 1 of 2 calls)" in report.findings[0].message


def test_the_report_can_be_read():
    model = two_blocks(lambda: nn.BatchNorm2d(8)).eval()
    nn.init.zeros_(model.body[1].weight)
    report = check(model, noise())
    assert str(report) == (
        "2 normalization layers, called 2 times in eval mode: 0 errors, 2 warnings, 1 hint\n"
        "\n"
        "warning [never-moved] stem.1: BatchNorm2d: evaluation uses the running statistics, but "
        "they still have their initial values: the layer normalizes nothing\n"
        "    also in body.1\n"
        "    fix: load a checkpoint that has them, or run training batches in train() first\n"
        "\n"
        "hint [zero-weight] body.1: BatchNorm2d: the weight is 0 in every channel, so the output "
        "is the bias for every input; residual branches start with this on purpose "
        "(zero_init_residual, last_gamma)\n"
        "    fix: none for a residual branch before its first step; otherwise start the weight at 1"
    )
    assert len(report) == 3
    assert [finding.severity for finding in report] == ["warning", "warning", "hint"]
    with pytest.raises(ValueError, match="no finding is of kind 'nan': choose one of exception"):
        report.of("nan")


def test_many_layers_are_counted():
    findings = tuple(Finding("hint", f"norm{i}", "unused", "not called", "none") for i in range(9))
    text = str(Report(findings, 9, 0, True))
    assert "also in norm1, norm2, norm3, norm4, norm5, norm6 and 2 more\n" in text


PAGE = (Path(__file__).parents[3] / "docs/checkup.md").read_text()


def test_the_page_has_every_kind():
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(KINDS)


def test_the_example_of_the_page_prints_its_output(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    assert textwrap.indent(capsys.readouterr().out, "    ") in PAGE


def test_names_of_layers_are_escaped_in_the_text():
    name = "a\x1b[31m\n"
    model = nn.Sequential()
    model.add_module(name, nn.BatchNorm2d(2))
    report = check(model, torch.zeros(1, 2, 4, 4))
    assert {finding.layer for finding in report} == {name}
    assert r"] a\x1b[31m\n: " in str(report)
    assert "\x1b" not in str(report)
