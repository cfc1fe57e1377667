"""Drawing of the pools: the solid planes are those that change the output of the chosen plane."""

from __future__ import annotations

import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import momentnorm
from momentnorm.cli import main
from momentnorm.figure import figure
from support.commands import refusal

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = [(4, 6, 4, 4), (1, 1, 1), (1, 6, 2), (7, 2, 1, 3), (2, 4, 2, 2, 2), (16, 32, 8, 8)]

LAYERS = {
    "batch": lambda c, _, __: momentnorm.BatchNorm2d(c),
    "layer": lambda c, _, size: momentnorm.LayerNorm((c, *size)),
    "instance": lambda c, _, __: momentnorm.InstanceNorm2d(c),
    "group": lambda c, groups, _: momentnorm.GroupNorm(groups, c),
    "switchable": lambda c, _, __: momentnorm.SwitchableNorm2d(c),
    "rms": lambda c, _, size: momentnorm.RMSNorm((c, *size)),
}


def kinds_for(shape):
    """Kinds that can be drawn. SwitchableNorm needs more than one element in a plane."""
    one = torch.Size(shape[2:]).numel() == 1
    return [kind for kind in figure.KINDS if not (one and kind == "switchable")]


def panels(drawing):
    groups = ElementTree.fromstring(drawing).iter(f"{SVG}g")
    return {group.get("data-kind"): group for group in groups if group.get("data-kind")}


def centres(outline):
    """Centres of the quadrilaterals of a path."""
    for part in outline.split("Z")[:-1]:
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", part)]
        yield sum(numbers[::2]) / 4, sum(numbers[1::2]) / 4


def drawn_planes(panel):
    """Colour of each solid plane, {(n, c): fill}, by the position of its top among all tops."""
    solid = [
        (next(centres(top.get("d"))), top.get("fill"))
        for group in panel.iter(f"{SVG}g")
        if group.get("data-plane")
        for top in [group.findall(f"{SVG}path")[-1]]
    ]
    paths = panel.findall(f"{SVG}path[@class='glass top']")
    glass = [centre for path in paths for centre in centres(path.get("d"))]
    # x counts c + n and y counts c - n, both from the leftmost plane, (0, 0).
    left, middle = min([centre for centre, _ in solid] + glass)
    found = {}
    for (x, y), fill in solid:
        total, difference = (x - left) / (26 * 0.75**0.5), (y - middle) / 13
        n, c = (total - difference) / 2, (total + difference) / 2
        assert abs(n - round(n)) < 0.02
        assert abs(c - round(c)) < 0.02
        found[round(n), round(c)] = fill
    return found, len(glass)


@pytest.mark.parametrize("kind", figure.KINDS)
@pytest.mark.parametrize("chosen", [(0, 0), (2, 3)])
def test_solid_planes_are_those_that_change_the_chosen_one(kind, chosen):
    shape = (3, 6, 2, 3)
    layer = LAYERS[kind](6, 3, shape[2:])
    x = torch.randn(shape)
    y = layer(x)[chosen]
    expected = set()
    for plane in itertools.product(range(3), range(6)):
        other = x.clone()
        other[plane] += torch.randn(2, 3)
        if not torch.allclose(layer(other)[chosen], y, atol=1e-5):
            expected.add(plane)
    sample, channel = chosen
    drawing = figure.draw([kind], shape, groups=3, sample=sample, channel=channel)
    solid, glass = drawn_planes(panels(drawing)[kind])
    assert set(solid) == expected
    assert glass == 18 - len(expected)
    assert [plane for plane in solid if solid[plane] == "#e69f00"] == [chosen]


def test_shares_of_a_mixture():
    policy = figure.policy("switchable", (4, 6, 2, 2), 1)
    part = figure.shares(policy, 4, 6, sample=1, channel=2)
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1] += 1 / 18
    expected[:, 2] += 1 / 12
    expected[1, 2] += 1 / 3
    torch.testing.assert_close(part, expected)
    drawing = figure.draw(["switchable"], (4, 6, 2, 2), sample=1, channel=2)
    assert "The mean is 47%" in drawing
    assert "28% of the sample" in drawing
    colours, _ = drawn_planes(panels(drawing)["switchable"])
    assert len(set(colours.values())) == 3
    assert colours[1, 0] != colours[0, 2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dark", [False, True])
def test_every_shape_has_a_title_and_a_description(shape, dark):
    drawing = figure.draw(kinds_for(shape), shape, groups=shape[1], dark=dark)
    root = ElementTree.fromstring(drawing)
    assert list(panels(drawing)) == kinds_for(shape)
    assert root.get("role") == "img"
    described = root.get("aria-labelledby").split()
    assert [root[0].get("id"), root[1].get("id")] == described
    for title in figure.KINDS.values() if "switchable" in kinds_for(shape) else ():
        assert title in root[1].text
    assert ("#14171b" in drawing) == dark


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_text_lies_on_another_or_outside(browser, shape):
    for kinds in (kinds_for(shape), ["instance"]):
        page = browser.new_page()
        page.set_content(figure.draw(kinds, shape, groups=1))
        boxes = page.evaluate(
            "[...document.querySelectorAll('text')].map(t => {"
            "const b = t.getBoundingClientRect();"
            "return [t.textContent, b.x, b.y, b.right, b.bottom] })"
        )
        frame = page.evaluate(
            "(() => { const b = document.querySelector('svg').getBoundingClientRect();"
            "return [b.x, b.y, b.right, b.bottom] })()"
        )
        page.close()
        assert len(boxes) >= 6 * len(kinds) + 3
        for _, x, y, right, bottom in boxes:
            assert frame[0] < x < right < frame[2]
            assert frame[1] < y < bottom < frame[3]
        for one, other in itertools.combinations(boxes, 2):
            apart = (
                one[3] <= other[1] or other[3] <= one[1] or one[4] <= other[2] or other[4] <= one[2]
            )
            assert apart, (one, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kinds": ["spectral"]}, ["'spectral'", "choose from batch"]),
        ({"kinds": []}, ["nothing to draw"]),
        ({"shape": (4, 6)}, ["(4, 6)", "at least three sizes"]),
        ({"shape": (4, 0, 4, 4)}, ["from 1 up"]),
        ({"shape": (4, 64, 4, 4)}, ["64 channels", "room for 32"]),
        ({"shape": (4, 6, 32, 32)}, ["1024 elements a plane", "room for 64"]),
        ({"groups": 4}, ["4 groups", "6 channels", "1, 2, 3, 6"]),
        ({"groups": 0}, ["0 groups"]),
        ({"sample": 4}, ["sample 4", "0 to 3"]),
        ({"channel": -1}, ["channel -1", "0 to 5"]),
        ({"kinds": ["switchable"], "shape": (2, 2, 1)}, ["unbiased", "larger plane"]),
    ],
)
def test_errors_name_the_fix(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        figure.draw(**arguments)
    for word in words[1:]:
        assert word in str(error.value)


def test_the_command_writes_the_drawing(tmp_path, capsys):
    path = tmp_path / "norms.svg"
    arguments = ["group", "--shape", "2,4,3", "--groups", "4", "--sample", "1", "--channel", "3"]
    assert main(["figure", *arguments, "--dark", "-o", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    expected = figure.draw(["group"], (2, 4, 3), groups=4, sample=1, channel=3, dark=True)
    assert path.read_text() == expected


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--groups", "4", "-o", "x.svg"], "4 groups do not divide"),
        (["--shape", "4x6", "-o", "x.svg"], "such as 4,6,4,4"),
        (["-o", "x.jpg"], ".svg, .png, .pdf"),
        (["-o", "missing/x.svg"], "create it first"),
        ([], "-o/--out"),
    ],
)
def test_the_command_complains_in_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert word in refusal(["figure", *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_other_formats(suffix, start, tmp_path):
    try:
        import cairosvg  # noqa: F401
    except (ImportError, OSError):
        pytest.skip("CairoSVG or the Cairo library is not installed")
    path = tmp_path / f"norms.{suffix}"
    assert main(["figure", "-o", str(path)]) == 0
    assert path.read_bytes().startswith(start)


def test_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    error = refusal(["figure", "-o", str(tmp_path / "norms.png")], capsys)
    assert "pip install 'momentnorm[figure]'" in error
