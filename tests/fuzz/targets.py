"""Targets: the readers of files, and the properties that hold for any bytes."""

from __future__ import annotations

import functools
import io
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, features
from safetensors.torch import load_file
from torch import nn

from momentnorm import load_legacy
from momentnorm.explainer import ExplainError, files
from momentnorm.studies import STUDIES, StudyError, page
from momentnorm.stylize import (
    Style,
    StylizeError,
    Trunk,
    TrunkShape,
    load_style,
    load_trunk,
    read_photo,
    save_style,
    save_trunk,
    stylize,
)
from momentnorm.stylize.checkpoints import Checkpoint

from . import mutate

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"


@dataclass(frozen=True)
class Target:
    """Reader of files, and its properties.

    Args:
        suffix: suffix of its files.
        seeds: function that makes valid files, which are then damaged.
        use: function that reads a file, and asserts the properties of the result.
        refuses: errors that it may raise.
        one_line: whether the messages of these errors are one printable line.
        header: whether the files are safetensors. Half of the damage is then in the header.
    """

    suffix: str
    seeds: Callable[[Path], list[bytes]]
    use: Callable[[Path], None]
    refuses: tuple[type[Exception], ...]
    one_line: bool = True
    header: bool = False

    def cases(self, seed, folder):
        """Give damaged files without end. Equal seeds give equal files."""
        choice, seeds = random.Random(seed), self.seeds(folder)
        while True:
            way = mutate.damaged_header if self.header and choice.random() < 0.5 else mutate.damaged
            yield way(choice.choice(seeds), choice, seeds)

    def run(self, content, folder):
        """Read a file with this content.

        Raises:
            Exception: a finding. The reader raised an error of another kind or with several lines,
                or its result breaks a property.
        """
        path = folder / f"case{self.suffix}"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.use(path)
        except self.refuses as error:
            message = str(error)
            assert message, "an error without a message"
            assert not self.one_line or (message.isprintable() and len(message) < 1000), message


@functools.cache
def tiny_trunk():
    torch.manual_seed(0)
    return Trunk(TrunkShape(width=1, blocks=0)).requires_grad_(False)


def _styles(folder):
    path = folder / "seed.safetensors"
    save_style(Style(tiny_trunk().new_style(), tiny_trunk(), picture="waves"), path)
    return [path.read_bytes()]


def _use_style(path):
    style = load_style(path, tiny_trunk())
    assert list(load_file(path)) == ["style"]
    assert style.vector.dtype == torch.float32
    assert torch.isfinite(style.vector).all()
    assert stylize(torch.rand(3, 8, 8), style).shape == (3, 8, 8)


def _trunks(folder):
    path = folder / "seed.safetensors"
    found = []
    for blocks in (0, 1):
        save_trunk(Trunk(TrunkShape(width=1, blocks=blocks)), path)
        found.append(path.read_bytes())
    return found


def _use_trunk(path):
    trunk = load_trunk(path)
    for name, value in trunk.state_dict().items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name
    assert trunk(torch.rand(1, 3, 8, 8), trunk.new_style()).shape == (1, 3, 8, 8)


_IDENTITY = json.dumps({"steps": 6})


def _training():
    torch.manual_seed(0)
    trunk = Trunk(TrunkShape(width=1, blocks=0))
    optimizer = torch.optim.Adam(trunk.parameters())
    return trunk, optimizer, Checkpoint(_IDENTITY, trunk.state_dict(), optimizer)


def _step(trunk, optimizer):
    for parameter in trunk.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()


def _checkpoints(folder):
    path = folder / "seed.safetensors"
    trunk, optimizer, checkpoint = _training()
    _step(trunk, optimizer)
    checkpoint.save(path, 1)
    return [path.read_bytes()]


def _use_checkpoint(path):
    trunk, optimizer, checkpoint = _training()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    try:
        done = checkpoint.load(path, 6)
    except StylizeError:
        assert not optimizer.state
        for name, value in trunk.state_dict().items():
            assert torch.equal(value, before[name]), name
        raise
    assert 1 <= done <= 6
    _step(trunk, optimizer)


def _images(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "somebody"
    found = []
    for form, mode in (
        ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
        ("WEBP", "RGBA"), ("TIFF", "RGB"), ("BMP", "RGB"), ("GIF", "P"),
        ("PPM", "RGB"), ("AVIF", "RGB"),
    ):  # fmt: skip
        if form in ("WEBP", "AVIF") and not features.check(form.lower()):
            continue
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels[..., :3]).convert(mode)
        options = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        found.append(buffer.getvalue())
    return found


def _use_image(path):
    # A small limit, so that files which declare a large image are refused quickly.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 50_000
    try:
        errors = []
        for read in (_use_photo, _use_input):
            try:
                read(path)
            except (StylizeError, ExplainError) as error:
                errors.append(error)
        for error in errors:
            raise error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _use_photo(path):
    photo = read_photo(path)
    assert photo.rgb.dtype == torch.float32
    assert photo.rgb.shape[0] == 3
    assert 0 <= photo.rgb.min() <= photo.rgb.max() <= 1


def _use_input(path):
    values = files.read(path)
    assert values.is_floating_point() or values.is_complex()


def _arrays(folder):
    found = []
    for dtype in ("float32", "int16", "complex64"):
        buffer = io.BytesIO()
        np.save(buffer, np.arange(12).reshape(1, 2, 6).astype(dtype))
        found.append(buffer.getvalue())
    return found


def _models():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True), nn.BatchNorm2d(2))


def _legacy(folder):
    found = []
    for new in (True, False):
        buffer = io.BytesIO()
        state = {"state_dict": _models().state_dict()}
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        found.append(buffer.getvalue())
    return found


def _use_legacy(path):
    model = _models()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about each change of the checkpoint
            load_legacy(model, path)
    except (ValueError, RuntimeError, OSError):
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        raise


def _texts(*contents):
    return lambda folder: [content.encode() for content in contents]


_STUDY = STUDIES["switchable"]
_RESULTS = Path(__file__).parents[2] / "docs" / "studies"


def _results(suffix):
    return lambda folder: [(_RESULTS / f"{_STUDY.name}{suffix}").read_bytes()]


def _use_results(path):
    """Write a page from one damaged and one valid file of a study."""
    folder = path.parent / "studies"
    folder.mkdir(exist_ok=True)
    for suffix in (".csv", ".json"):
        source = path if suffix == path.suffix else _RESULTS / f"{_STUDY.name}{suffix}"
        (folder / f"{_STUDY.name}{suffix}").write_bytes(source.read_bytes())
    text = page.section(_STUDY, folder)
    assert text.replace("\n", "").isprintable()


_study = functools.partial(Target, use=_use_results, refuses=(StudyError,))
_input = functools.partial(Target, use=_use_input, refuses=(ExplainError,))

TARGETS = {
    "style": Target(".safetensors", _styles, _use_style, (StylizeError,), header=True),
    "trunk": Target(".safetensors", _trunks, _use_trunk, (StylizeError,), header=True),
    "checkpoint": Target(
        ".safetensors", _checkpoints, _use_checkpoint, (StylizeError,), header=True
    ),
    "image": Target(".png", _images, _use_image, (StylizeError, ExplainError)),
    "npy": _input(".npy", _arrays),
    "json": _input(".json", _texts("[[[1, 2.5], [3e2, -4]]]", "[[[NaN, Infinity]]]")),
    "csv": _input(".csv", _texts("1,2\n3,4.5\n", '"1","-2e3"\r\n')),
    "study-csv": _study(".csv", _results(".csv")),
    "study-json": _study(".json", _results(".json")),
    "legacy": Target(
        ".pth", _legacy, _use_legacy, (ValueError, RuntimeError, OSError), one_line=False
    ),
}
