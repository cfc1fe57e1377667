"""Draw the pictures of docs/explore.md: the figure, and the page on a screen and on a telephone.

    python tools/explore_images.py

It needs playwright and Chromium. CONTRIBUTING.md says how to install them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from momentnorm import explore, figure

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SHOTS = {
    "explore.png": ("a=instance&b=batch&step=4&at=0,1,0,1", (1180, 1010), "light"),
    "explore-phone.png": ("a=group-2&b=none&shape=2,4,2,1&step=5&at=1,2,0,0", (360, 1180), "dark"),
}


def main() -> None:
    IMAGES.joinpath("norms.svg").write_text(figure.draw(), encoding="utf-8")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "page.html")
        file.write_text(explore.page(), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for name, (link, (width, height), scheme) in SHOTS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page.goto(f"{file.as_uri()}#{link}")
            if width < 480:
                page.locator("#input").scroll_into_view_if_needed()
                page.evaluate("scrollTo(0, document.querySelector('main').offsetTop - 12)")
            page.screenshot(path=IMAGES / name)
        browser.close()


if __name__ == "__main__":
    main()
