"""Small styles, small photographs, and the command line in this process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from momentnorm.cli import main
from momentnorm.stylize import save_style, save_trunk
from support.stylize_samples import pixels, small_style


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """Run ``momentnorm stylize ...``."""

    def call(*argv: object) -> Outcome:
        try:
            code = main(["stylize", *map(str, argv)])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def fails(run):
    """Run, and expect exit code 2 and one line on stderr with all of these words."""

    def call(*argv: object, says: tuple[str, ...] | str) -> str:
        outcome = run(*argv)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1, outcome.err
        for words in (says,) if isinstance(says, str) else says:
            assert words in outcome.err
        return outcome.err

    return call


@pytest.fixture
def style_file(tmp_path) -> Path:
    """A style of a small trunk, which is in the same folder."""
    folder = tmp_path / "styles"
    folder.mkdir()
    style = small_style()
    save_trunk(style.trunk, folder / "trunk.safetensors")
    save_style(style, folder / "small.safetensors")
    return folder / "small.safetensors"


@pytest.fixture
def photo_file(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels(40, 52)).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three photographs to learn on."""
    folder = tmp_path / "content"
    folder.mkdir()
    for index, size in enumerate(((50, 70), (32, 90), (100, 64))):
        Image.fromarray(pixels(*size, seed=index)).save(folder / f"{index}.png")
    return folder
