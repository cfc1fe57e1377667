"""Formats of a trace: text, terminal, HTML, Markdown, JSON and pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import torch

from momentnorm import InstanceNorm1d
from momentnorm.explainer import Step, Worked, explain, names
from momentnorm.explainer.example import X
from momentnorm.explainer.layout import layout, letter, number, worked
from momentnorm.support.errors import UserError


@pytest.fixture(scope="module")
def trace():
    return explain("batch", X, weight=[1.0, -2.0], bias=[0.0, 0.5], gradient="one")


def step(values, axes=None, **more):
    values = torch.as_tensor(values, dtype=torch.float64)
    axes = axes or ("N", "C", "H", "W")[: values.dim()]
    return Step("s", "Output", "s", "s", values, axes, **more)


def test_the_text_has_aligned_values(trace):
    lines = str(trace).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("mean   (N, C)"))
    assert lines[at] == "mean   (N, C) = (2, 2), in units of x"
    assert lines[at + 2].strip() == "first: (5 + 5) / 2 = 5"
    table = lines[at + 3 : at + 6]
    assert table == [
        "              channel 0  channel 1",
        "    sample 0        5.0       14.5",
        "    sample 1        5.0       14.5",
    ]
    assert max(map(len, lines)) <= 96


@pytest.mark.parametrize("width", [40, 72, 200])
def test_the_text_keeps_to_the_width(width):
    text = explain("instance", torch.rand(2, 2, 2, 2)).text(width=width, precision=2)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("values", "precision", "shown"),
    [
        ([1.0, 20.0], 4, ["1", "20"]),
        ([0.5, 2.0], 4, ["0.5", "2.0"]),
        ([1 / 3, 2.0], 3, ["0.333", "2.000"]),
        ([1e-9, 2e-8], 2, ["1.00e-09", "2.00e-08"]),
        ([1e9, 0.0], 1, ["1.0e+09", "0.0e+00"]),
        ([-1e-9, 1.0], 2, ["0.00", "1.00"]),
        ([float("nan"), float("-inf"), 1.0], 2, ["NaN", "-inf", "1"]),
    ],
)
def test_digits(values, precision, shown):
    (table,) = layout(step(values), precision).tables
    assert table.rows == [shown]


def test_numbers_in_formulas():
    example = Worked("({})^2 + ({})^2 + {} - {} = {}", (-4.0, 1.0, -2.5, -3.0, 1 / 3))
    assert worked(example, 4) == "(-4)^2 + 1^2 - 2.5 + 3 = 0.3333"
    assert number(float(torch.tensor(0.3)), 4) == "0.3"


def test_letters():
    assert [letter(index) for index in (0, 25, 26, 27, 701, 702)] == [
        "A", "Z", "AA", "AB", "ZZ", "AAA",
    ]  # fmt: skip


def test_large_steps_are_clipped_and_summarized():
    values = torch.arange(4 * 3 * 30 * 20, dtype=torch.float64).reshape(4, 3, 30, 20)
    values[-1, -1, -1, -1] = torch.nan
    found = layout(step(values), 2)
    assert len(found.tables) == 2
    assert found.tables[1].title == "sample 0, channel 1"
    assert found.tables[0].rows[0][-1] == found.tables[0].rows[-1][0] == "…"
    assert "60 of 7200 values are shown; of all, but for 1 NaN: least 0, largest 7198" in (
        found.omitted
    )
    text = explain("instance", torch.randn(8, 64, 16, 16)).text()
    assert len(text.splitlines()) < 150
    assert not layout(step(values[:1, :2, :8, :8]), 2).omitted


def test_axes_are_named():
    (table,) = layout(step([[1.0, 2.0]], ("N", "C")), 2).tables
    assert (table.columns, table.row_heads) == (["channel 0", "channel 1"], ["sample 0"])
    tables = layout(step(torch.zeros(2, 3, 4), ("N", "C", "L")), 2).tables
    assert [table.title for table in tables] == ["sample 0", "sample 1"]
    assert tables[0].row_heads == ["channel 0", "channel 1", "channel 2"]
    assert layout(step(torch.tensor(3.0), ()), 2).tables[0].rows == [["3"]]


class Balanced(HTMLParser):
    """Parser that checks that every tag is closed, and collects links and texts."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("br", "meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def test_html_loads_no_other_file(trace, tmp_path):
    text = trace.save(tmp_path / "steps.html").read_text()
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert not parser.links
    assert "http" not in text.replace("<!doctype html>", "")
    for one in trace:
        assert one.name in parser.cells
    assert "-1.4606" in parser.cells


def test_markdown(trace, tmp_path):
    text = trace.save(tmp_path / "steps.md").read_text()
    assert text.count("```") == 2 * len(trace)
    assert text.count("$$") == 2 * len(trace)
    assert "### `running_mean`" in text


def test_names_of_layers_are_escaped(tmp_path):
    class Named(InstanceNorm1d):
        def extra_repr(self):
            return "\x1b[31m\n# heading"

    trace = explain(Named(2), torch.rand(2, 2, 3))
    assert trace.layer == r"Named( \x1b[31m # heading )"
    for suffix in ("txt", "md", "html", "json"):
        text = trace.save(tmp_path / f"a.{suffix}").read_text()
        assert "\x1b" not in text
        assert "\n# heading" not in text


def test_json_has_every_value(trace, tmp_path):
    found = json.loads(trace.save(tmp_path / "steps.json").read_text())
    assert [one["name"] for one in found["steps"]] == trace.names
    for one in found["steps"]:
        values = torch.tensor(one["values"], dtype=getattr(torch, one["dtype"]))
        assert torch.equal(values, trace[one["name"]].values)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_pictures(trace, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = trace.save(tmp_path / f"steps{suffix}")
    if suffix == ".svg":
        assert ET.parse(path).getroot().tag.endswith("svg")
        again = trace.save(tmp_path / "again.svg")
        assert again.read_bytes() == path.read_bytes()
        return
    image = pytest.importorskip("PIL.Image").open(path)
    assert image.width > 1000
    assert image.height > 2000
    colours = image.convert("RGB").getcolors(1 << 20)
    assert len(colours) > 20  # tinted cells, not an empty sheet


def test_matplotlib_can_typeset_every_formula():
    pytest.importorskip("matplotlib")
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    x = torch.rand(2, 4, 3, 3)
    for name in names():
        for one in explain(name, x, gradient="one"):
            parser.parse(f"${one.latex}$")
    for one in explain("batch", x, activation="leaky_relu", gradient="one"):
        parser.parse(f"${one.latex}$")


def test_text_in_a_terminal(trace):
    console_module = pytest.importorskip("rich.console")
    console = console_module.Console(width=96, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(trace)
    console.file.close()
    plain = console.export_text(clear=False)
    assert [line.rstrip() for line in plain.splitlines()] == str(trace).splitlines()
    assert "\x1b[" in console.export_text(styles=True)


def test_an_unknown_suffix_or_folder_is_refused(trace, tmp_path):
    with pytest.raises(UserError, match=r"choose one of \.txt, \.md, \.html, \.json"):
        trace.save(tmp_path / "steps.pdf")
    with pytest.raises(UserError, match="does not exist"):
        trace.save(tmp_path / "nowhere" / "steps.txt")


def test_the_precision_is_chosen(trace, tmp_path):
    first = trace["x_hat"].values[0, 0, 0, 0].item()
    assert f"{first:.7f} " in trace.text(precision=7)
    text = trace.save(tmp_path / "a.txt", precision=1).read_text()
    assert f"{first:.1f} " in text
    assert f"{first:.2f}" not in text
