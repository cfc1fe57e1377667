"""docs/learn: pages and pictures equal the output of their commands and their Python."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/learn"
NAMES = sorted(path.name for path in PAGES.glob("*.md"))

_specification = importlib.util.spec_from_file_location(
    "build_learn", ROOT / "tools/build_learn.py"
)
build_learn = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(build_learn)


@pytest.fixture
def folder(tmp_path):
    """Copy of the pages without pictures, so that each picture found later was drawn."""
    copied = tmp_path / "learn"
    shutil.copytree(PAGES, copied, ignore=shutil.ignore_patterns("images"))
    (copied / "images").mkdir()
    return copied


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_output_of_its_commands(name, folder):
    if "images/" in (PAGES / name).read_text():
        pytest.importorskip("matplotlib")
    page = (PAGES / name).read_text(encoding="utf-8")
    assert build_learn.built(page, folder) == page
    for drawn in sorted((folder / "images").iterdir()):
        _same_picture(drawn, PAGES / "images" / drawn.name)


def _same_picture(drawn, committed):
    """Compare two pictures, up to the font rendering of another version of matplotlib."""
    if drawn.suffix == ".txt":
        assert drawn.read_text() == committed.read_text()
        return
    image = pytest.importorskip("PIL.Image")
    chops, stat = pytest.importorskip("PIL.ImageChops"), pytest.importorskip("PIL.ImageStat")
    with image.open(drawn) as ours, image.open(committed) as theirs:
        assert ours.size == theirs.size
        assert getattr(ours, "n_frames", 1) == getattr(theirs, "n_frames", 1)
        for frame in range(getattr(ours, "n_frames", 1)):
            ours.seek(frame)
            theirs.seek(frame)
            difference = chops.difference(ours.convert("RGB"), theirs.convert("RGB"))
            assert max(stat.Stat(difference).mean) < 2  # of 255


def test_every_picture_is_drawn_by_a_page():
    text = "".join((PAGES / name).read_text() for name in NAMES)
    for path in (PAGES / "images").iterdir():
        assert f"-o images/{path.name}" in text
        assert text.count(f"images/{path.name}") > 1


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (PAGES / name).read_text()):
        assert (PAGES / target).exists(), target


def test_a_stale_page_is_found(folder):
    page = "```console\n$ cat four.csv\n1,6\n```\n\n```python\nprint(2)\n```\n\n```text\n3\n```\n"
    fresh = page.replace("1,6\n", "1,6\n9,4\n").replace("3\n", "2\n")
    assert build_learn.built(page, folder) == fresh
    assert build_learn.built(fresh, folder) == fresh


def test_python_without_output_stays(folder):
    page = "```python\nx = 1\n```\n\ntext\n\n```python\nprint(x)\n```\n"
    assert build_learn.built(page, folder) == page + "\n```text\n1\n```\n"


def test_only_our_commands_run(folder):
    with pytest.raises(ValueError, match="nothing else"):
        build_learn.built("```console\n$ rm -r .\n```\n", folder)
