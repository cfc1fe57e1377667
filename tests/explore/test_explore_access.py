"""Access to the page: by keyboard, by touch, in print, in light and dark, with contrast."""

from __future__ import annotations

import itertools

import pytest

from support.explore_page import cell, marked


def test_everything_is_reached_by_keyboard(visit):
    page = visit("shape=2,3,2,2&step=5")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const e = document.activeElement; if (e === document.body) return '';"
            "if (getComputedStyle(e).outlineStyle === 'none'"
            "    && !e.matches('.planes input, #steps input')) return 'no outline ' + e.id;"
            "return e.id || e.name || e.closest('table')?.getAttribute('aria-label')"
            "    || e.textContent })()"
        )
        if not name:
            break
        seen.append(name)
    wanted = ["link", "theme", "a-layer", "b-layer", "shape-batch", "eps", "weight", "example"]
    wanted += ["Input", "previous", "step", "Instance Norm: Scaled and shifted"]
    wanted += ["Batch Norm: Scaled and shifted", "Make this update", "photo-file", "photo-drawn"]
    assert [name for name in seen if name in wanted] == wanted
    assert not [name for name in seen if name.startswith("no outline")]


def test_arrow_keys_walk_through_a_table(visit):
    page = visit("shape=2,3,2,2&b=none&step=5")

    def focused():
        return page.evaluate("document.activeElement.closest('[data-at]').dataset.at")

    for where in ("#input", "article.a"):
        start = cell(page, 0, 0, 0, 0, where=where)
        (start.locator("input") if where == "#input" else start).focus()
        for key, expected in (
            ("ArrowRight", "0,0,0,1"),
            ("ArrowRight", "0,1,0,0"),
            ("ArrowDown", "0,1,1,0"),
            ("ArrowDown", "1,1,0,0"),
            ("ArrowLeft", "1,0,0,1"),
            ("ArrowUp", "0,0,1,1"),
            ("Control+End", "1,2,1,1"),
            ("ArrowRight", "1,2,1,1"),
            ("Control+Home", "0,0,0,0"),
            ("ArrowUp", "0,0,0,0"),
        ):
            page.keyboard.press(key)
            assert focused() == expected
            assert ",".join(map(str, next(iter(marked(page, where, "chosen"))))) == expected
    page.locator("#steps input").nth(0).check()
    page.locator("article.a td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert focused() == "1,1,0,0"
    # Inside a number, left and right move the text cursor.
    cell(page, 0, 1, 0, 0).locator("input").focus()
    page.keyboard.type("12")
    page.keyboard.press("ArrowLeft")
    assert focused() == "0,1,0,0"
    page.keyboard.type("5")
    assert cell(page, 0, 1, 0, 0).locator("input").input_value() == "152"


@pytest.mark.parametrize("link", ["", "shape=6,8,2,3&a=group-4", "shape=1,8,6,6&step=5&b=rms"])
def test_a_phone_is_wide_enough(visit, link):
    page = visit(link, width=360, height=740, has_touch=True)
    page.locator("#more summary").tap()
    page.click("#photo-drawn")
    page.wait_for_selector(".photograph")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    cell(page, 0, 0, 1, 1).locator("input").tap()
    assert marked(page, "#input", "chosen") == {(0, 0, 1, 1)}


def test_light_dark_and_still(visit):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = "rgb(251, 251, 250)", "rgb(19, 21, 24)"
    page = visit(color_scheme="dark", reduced_motion="reduce")
    assert background(page) == dark
    moving = (
        "[...document.querySelectorAll('*')]"
        ".filter(e => getComputedStyle(e).transitionDuration !== '0s').length"
    )
    assert page.evaluate(moving) == 0
    page.click("#theme")
    assert background(page) == light
    page.click("#theme")
    assert background(page) == dark
    page = visit(color_scheme="light")
    assert background(page) == light
    assert page.evaluate(moving) > 0


CONTRAST = """
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) =>
      v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!(own || element.matches("input")) || !element.checkVisibility() || element.disabled
        || element.closest(".unseen, option, svg")) continue;
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.unshift(getComputedStyle(e).backgroundColor);
    let behind = [255, 255, 255];
    for (const layer of layers) {
      canvas.fillStyle = `rgb(${behind})`;
      canvas.fillRect(0, 0, 1, 1);
      behind = rgb(layer);
    }
    const front = luminance(rgb(getComputedStyle(element).color)), back = luminance(behind);
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) seen.push([element.tagName, element.textContent.slice(0, 30), ratio]);
  }
  return seen;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_fields_have_names(visit, scheme):
    page = visit("a=switchable&step=5&shape=2,2,2,2", color_scheme=scheme)
    page.fill("#eps", "x")  # an error to be read
    page.wait_for_timeout(200)  # colours change for a moment
    assert page.evaluate(CONTRAST) == []
    nameless = page.eval_on_selector_all(
        "input, select, button, [role=grid], [role=img], section, article",
        "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label')"
        "  || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent"
        "  || (e.tagName === 'BUTTON' && e.textContent))).map(e => e.outerHTML)",
    )
    assert nameless == []
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"


def test_print_has_all_steps_and_no_controls(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.is_visible("#a-layer")
    assert not page.is_visible("#next")
    assert [page.locator("article.a .arithmetic li").nth(i).is_visible() for i in range(5)] == [
        True
    ] * 5
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(19, 21, 24)"
