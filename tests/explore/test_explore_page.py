"""The page in a browser: the numbers that it shows, and how it is used."""

from __future__ import annotations

import io
import itertools
import json

import pytest
import torch

import momentnorm
from support.explore_numbers import assert_close, library_layer
from support.explore_page import cell, marked, numbers, values

EXAMPLE = [1, 6, 9, 4, 12, 18, 13, 11, 2, 7, 3, 8, 19, 17, 15, 11]


SETTINGS = [
    ("instance", {}),
    ("instance-tracked-eval", {"training": False, "tracking": True}),
    ("batch", {"tracking": True}),
    ("batch-eval", {"training": False, "tracking": True}),
    ("layer", {}),
    ("group-2", {}),
    ("switchable", {}),
    ("switchable-eval", {"training": False}),
    ("rms", {}),
]


@pytest.mark.parametrize(("norm", "changes"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_what_is_shown_equals_the_library(visit, norm, changes):
    setting = {
        "layer": norm.partition("-")[0],
        "shape": [3, 4, 2, 3],
        "groups": 2,
        "eps": 0.001,
        "weight": [1.5, -1.0, 0.25, 2.0],
        "bias": [0.0, 0.5, -3.0, 1.0],
        "training": True,
        "tracking": False,
        "momentum": 0.25,
        "runningMean": [1.0, 2.0, 3.0, 4.0],
        "runningVar": [4.0, 3.0, 2.0, 1.0],
        "meanWeight": [0.0, 1.0, -1.0],
        "varWeight": [1.0, 0.0, 2.0],
    } | changes
    x = torch.randn(setting["shape"], dtype=torch.float64) * 3 + 5
    lists = {
        name: ",".join(map(str, value))
        for name, value in setting.items()
        if isinstance(value, list)
    }
    link = "&".join(f"{name}={value}" for name, value in lists.items())
    given = ",".join(map(repr, x.flatten().tolist()))
    page = visit(f"b=none&a={norm}&eps=0.001&momentum=0.25&step=5&{link}&x={given}")
    layer = library_layer(setting)
    in_table = x.permute(0, 2, 1, 3)  # a row of the table has all channels side by side
    assert numbers(page) == in_table.flatten().tolist()
    assert_close(values(page), layer(x).detach().permute(0, 2, 1, 3), amplified=20)
    if norm in ("instance", "layer", "group-2"):
        groups = {"instance": 4, "layer": 1, "group-2": 2}[norm]
        pools = x.view(3, groups, -1)
        for step, expected in ((1, pools.mean(2)), (2, pools.var(2, correction=0))):
            page.locator("#steps input").nth(step - 1).check()
            assert_close(values(page), expected.repeat_interleave(4 // groups, 1), amplified=20)
    update = page.get_by_role("button", name="Make this update")
    offered = setting["training"] and getattr(layer, "running_mean", None) is not None
    assert update.is_visible() == offered
    if offered:
        update.click()
        for field, buffer in (("runningMean", "running_mean"), ("runningVar", "running_var")):
            shown = page.input_value(f"#{field}").split(",")
            assert_close(list(map(float, shown)), getattr(layer, buffer), amplified=20)


def test_the_published_example_at_once(visit):
    page = visit()
    assert values(page) == [5.0, 13.5, 5.0, 15.5]
    page.click("#next")
    assert values(page) == [8.5, 7.25, 6.5, 8.75]
    assert "(16" not in page.inner_text("article.a")
    assert "= 34 / 4 = 8.5" in page.inner_text("article.a")
    assert values(page, "b") == [7.5, 9.0, 7.5, 9.0]


POOLS = {
    "instance": lambda n, c: (n, c) == (1, 2),
    "batch": lambda n, c: c == 2,
    "layer": lambda n, c: n == 1,
    "rms": lambda n, c: n == 1,
    "group-2": lambda n, c: n == 1 and c in (2, 3),
    "switchable": lambda n, c: n == 1 or c == 2,
    "batch-eval": lambda n, c: False,
    "switchable-eval": lambda n, c: n == 1,
}


@pytest.mark.parametrize("norm", POOLS)
@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_value_shows_which_formed_its_mean(visit, norm, how):
    page = visit(f"shape=3,4,2,2&b=none&step=5&a={norm}")
    expected = {
        (n, c, h, w)
        for n, c, h, w in itertools.product(range(3), range(4), range(2), range(2))
        if POOLS[norm](n, c)
    }
    for where in ("#input", "article.a"):
        page.mouse.move(0, 0)
        target = cell(page, 1, 2, 1, 0, where=where)
        if how == "hover":
            target.hover()
        elif where == "#input":
            target.locator("input").focus()
        else:
            target.focus()
        for seen in ("#input", "article.a"):
            assert marked(page, seen) == expected
            assert marked(page, seen, "chosen") == {(1, 2, 1, 0)}
        cube = page.eval_on_selector_all(
            "article.a .cube g", "all => all.map(g => g.dataset.plane.split(',').map(Number))"
        )
        assert {tuple(plane) for plane in cube} == {at[:2] for at in expected}
        page.evaluate("document.activeElement.blur()")
    if how == "hover":
        page.mouse.move(0, 0)
        assert marked(page, "#input", "chosen") == {(0, 0, 0, 0)}


def test_numbers_are_edited_in_place(visit):
    page = visit("b=none&step=5")
    first = page.locator("#input input").first
    first.fill("-3.5")
    x = torch.tensor([-3.5, *EXAMPLE[1:]], dtype=torch.float64).view(2, 2, 2, 2)
    expected = momentnorm.InstanceNorm2d(2)(x).permute(0, 2, 1, 3)
    assert_close(values(page), expected)
    first.fill("-3.5 apples")
    assert "“-3.5 apples” is not a number" in page.inner_text("#input-error")
    assert first.get_attribute("aria-invalid") == "true"
    assert first.get_attribute("aria-describedby") == "input-error"
    assert_close(values(page), expected)
    page.keyboard.press("ArrowDown")  # what is wrong stays to be seen
    assert first.input_value() == "-3.5 apples"
    first.fill("1")
    assert page.inner_text("#input-error") == ""
    assert first.get_attribute("aria-invalid") == "false"
    page.click("#random")
    assert len(set(numbers(page))) > 4
    page.click("#example")
    assert page.eval_on_selector_all("#input input", "all => all.map(i => Number(i.value))")[
        :4
    ] == [
        *(1, 6),
        *(12, 18),
    ]


def test_steps_go_forward_and_backward(visit):
    page = visit("b=none")
    formulas = []
    for _ in range(5):
        formulas.append(page.inner_text("article.a li:not([hidden]) .formula"))
        if page.is_enabled("#next"):
            page.click("#next")
    assert formulas[0].endswith("mean = E[x]")
    assert formulas[4].endswith("y = (x − mean) / √(var + eps) · weight + bias")  # noqa: RUF001
    assert page.is_disabled("#next")
    page.click("#previous")
    assert page.inner_text("article.a li:not([hidden]) .formula") == formulas[3]
    page.locator("#steps input").nth(3).focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("article.a li:not([hidden]) .formula") == formulas[2]
    assert "1 − 5 = −4" in page.inner_text("article.a li:not([hidden]) .numbers")  # noqa: RUF001
    page.locator("#announcement", has_text="Step 3").wait_for(state="attached")
    told = page.text_content("#announcement")
    assert told.startswith("Step 3 of 5. 1 at sample 0, channel 0, row 0, column 0. Instance Norm:")


def test_what_cannot_be_is_said_in_place(visit):
    page = visit("shape=2,4,2,2&a=group-2&b=none")
    page.fill("#a-groups", "3")
    for place in ("article.a .refusal", "#a-groups-error"):
        assert "3 groups do not divide 4 channels: choose one of 1, 2, 4." in page.inner_text(place)
    assert not page.is_visible("article.a table")
    assert page.get_attribute("#a-groups", "aria-invalid") == "true"
    page.fill("#a-groups", "4")
    assert page.is_visible("article.a table")
    assert not page.is_visible("#a-groups-error")
    page.select_option("#a-layer", "instance")
    page.fill("#shape-height", "1")
    page.fill("#shape-width", "1")
    assert "more than 1 element a plane" in page.inner_text("#shape-error")
    page.fill("#shape-width", "99")
    assert "width: 99 is not a whole number from 1 to 6" in page.inner_text("#shape-error")
    page.fill("#shape-width", "3")
    assert not page.is_visible("#shape-error")
    page.fill("#weight", "1, 2")
    assert "2 numbers for 4" in page.inner_text("#weight-error")
    page.fill("#weight", "2")  # one for all
    assert not page.is_visible("#weight-error")
    page.fill("#eps", "-1")
    assert "below 0" in page.inner_text("#eps-error")
    assert page.get_attribute("#eps", "aria-describedby") == "eps-error"


def test_a_link_shows_the_same(visit):
    page = visit("b=none")
    page.select_option("#b-layer", "group")
    page.fill("#shape-channels", "4")
    page.fill("#weight", "1, 2, 3, 4")
    page.locator("#input input").nth(3).fill("7.25")
    page.locator("#steps input").nth(4).check()
    page.click("#theme")
    page.click("#link")
    assert "settings and numbers" in page.inner_text("#link-status")
    link = page.evaluate("location.hash")
    other = visit(link[1:])
    for read in (
        lambda page: values(page, "a"),
        lambda page: values(page, "b"),
        lambda page: page.inner_text("article.b"),
        lambda page: page.input_value("#weight"),
        lambda page: page.evaluate("document.documentElement.dataset.theme"),
    ):
        assert read(page) == read(other)
    page.evaluate("location.hash = 'a=rms&b=none'")  # as when a link is pasted
    page.wait_for_selector("text=RMS Norm subtracts no mean")
    assert "left out" in visit("a=nonsense").inner_text("#link-problems")


def photograph(size):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    file = io.BytesIO()
    image.fromarray(pixels.numpy()).save(file, "png")
    upload = {"name": "photograph.png", "mimeType": "image/png", "buffer": file.getvalue()}
    return pixels.permute(2, 0, 1), upload


READ_CANVASES = """
all => all.map((canvas) => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return Array.from(pixels.filter((_, i) => i % 4 === 0));
})
"""


def test_a_photograph_before_and_after(visit):
    page = visit("a=instance&b=batch")
    pixels, upload = photograph((20, 12))
    page.set_input_files("#photo-file", upload)
    page.check("#photo-faded")
    page.locator(".photograph").nth(1).wait_for()
    assert page.inner_text("#photo-status") == "20 × 12 pixels."  # noqa: RUF001
    x = pixels.double()
    batch = torch.stack([x, 64 + x / 2])
    after = [
        (y + 3) / 6 * 255
        for y in (momentnorm.InstanceNorm2d(3)(batch), momentnorm.BatchNorm2d(3).double()(batch))
    ]
    expected = torch.stack([batch, *after], 1).clamp(0, 255).flatten(3).flatten(0, 2)
    shown = torch.tensor(page.eval_on_selector_all("canvas", READ_CANVASES), dtype=torch.float64)
    assert (shown - expected).abs().max() <= 0.5 + 1e-9
    captions = page.eval_on_selector_all("figcaption", "all => all.map(c => c.textContent)")
    assert len(captions) == 18
    assert captions[0] == f"mean {x[0].mean():.2f}".rstrip("0").rstrip(".") + (
        f", std {x[0].std(correction=0):.2f}".rstrip("0").rstrip(".")
    )
    assert captions[3] == "mean 0, std 1"
    assert (
        page.locator("canvas").first.get_attribute("aria-label").startswith("Photograph 1, Before")
    )
    page.select_option("#a-layer", "group")
    assert "2 groups do not divide 3 channels" in page.inner_text(".photograph .refusal >> nth=0")


def test_a_large_photograph_is_made_smaller(visit):
    page = visit()
    _, upload = photograph((1024, 512))
    page.set_input_files("#photo-file", upload)
    page.wait_for_selector(".photograph")
    assert "Downscaled from 1024 × 512 to 256 × 128" in page.inner_text("#photo-status")  # noqa: RUF001
    assert page.eval_on_selector("canvas", "c => [c.width, c.height]") == [256, 128]
    wrong = {"name": "text.png", "mimeType": "image/png", "buffer": json.dumps("no").encode()}
    page.set_input_files("#photo-file", wrong)
    page.wait_for_selector("#photo-status.error")
    assert "cannot read this file" in page.inner_text("#photo-status")
