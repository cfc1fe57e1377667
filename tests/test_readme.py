"""README: its examples run, its numbers are measured, and its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks import accuracy

from momentnorm.core.backends import cpu
from momentnorm.layers import by_name

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _examples(page):
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_examples_run(capsys):
    drop_in, *others = _examples(README)
    exec(drop_in, {})
    assert capsys.readouterr().out == "True\n"
    for example in others:
        exec(example, {})


def test_the_examples_of_accelerate_run(monkeypatch):
    monkeypatch.setattr(by_name, "_REGISTRY", dict(by_name._REGISTRY))
    if cpu.unavailable():
        pytest.skip("without kernels every layer is kept")
    examples = _examples((ROOT / "docs/accelerate.md").read_text())
    assert examples
    for example in examples:
        exec(example, {"__name__": __name__})


def test_the_timings_are_the_measured_ones():
    measured = (ROOT / "docs/benchmarks.md").read_text().splitlines()
    quoted = [
        line for line in README.splitlines() if line.startswith("| ") and line.endswith("x |")
    ]
    assert quoted
    for line in quoted:
        assert line in measured


def test_the_errors_are_of_this_size():
    for line in accuracy.table().splitlines():
        name, _, ours = line.strip("| ").split(" | ")
        (quoted,) = re.findall(
            rf"^\| {re.escape(name)} \| (\S+) \| (\S+) \|$", README, re.MULTILINE
        )
        assert float(ours) <= 2 * float(quoted[1])  # another torch may err otherwise: not ours


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md"))),
    ],
)
def test_links_lead_to_files(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
