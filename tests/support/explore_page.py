"""The page of ``momentnorm explore`` in a browser, for the tests of what it shows."""

from __future__ import annotations

import pytest

from momentnorm import explore


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "page.html"
    path.write_text(explore.page(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """Function that opens the page with these settings. Requests and console messages fail."""
    opened, complaints = [], []

    def open_page(link="", width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: opened.append(request.url))
        page.goto(f"{address}#{link}")
        return page

    yield open_page
    assert complaints == []
    assert {url.partition("#")[0] for url in opened} <= {address, "data:,"}


def values(page, panel="a"):
    return page.eval_on_selector_all(
        f"article.{panel} td data", "all => all.map(data => Number(data.value))"
    )


def numbers(page):
    """Numbers of the input's fields, in the order of the table."""
    return page.eval_on_selector_all("#input input", "all => all.map(i => Number(i.value))")


def marked(page, where, kind="in"):
    """Elements of a table that have a mark, as (n, c, h, w)."""
    found = page.eval_on_selector_all(f"{where} td.{kind}", "all => all.map(td => td.dataset.at)")
    return {tuple(map(int, at.split(","))) for at in found}


def cell(page, *at, where="#input"):
    return page.locator(f"{where} [data-at='{','.join(map(str, at))}']")
