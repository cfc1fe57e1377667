"""Style and trunk files: what is saved comes back, and nothing else is accepted. Blends."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from momentnorm.stylize import (
    Style,
    StylizeError,
    Trunk,
    TrunkShape,
    blend,
    load_style,
    load_trunk,
    save_style,
    save_trunk,
    stylize,
)
from momentnorm.stylize.trunk_files import trunk_identity
from support.stylize_samples import SHAPE, random_vectors, small_style, small_trunk


def test_there_and_back(style_file):
    style, found = small_style(), load_style(style_file)
    assert torch.equal(found.vector, style.vector.half().float())
    assert (found.name, found.picture) == ("small", "nothing")
    assert found.license.startswith("Apache-2.0")
    assert trunk_identity(found.trunk) == trunk_identity(style.trunk)
    for key, value in style.trunk.state_dict().items():
        assert torch.equal(found.trunk.state_dict()[key], value.half().float())
    image = torch.rand(3, 16, 20)
    torch.testing.assert_close(stylize(image, found), stylize(image, style), rtol=0, atol=0.05)


def test_the_same_style_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (vector,) = random_vectors(1)
        style = Style(vector, small_trunk(), picture="waves ♪")
        save_style(style, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["picture"] == "waves ♪"
        assert file.get_tensor("style").dtype == torch.float16


def rewritten(path, tensors=None, **changes):
    """The file with other tensors or metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata = {k: v for k, v in (metadata | changes).items() if v is not None}
    save_file(load_file(path) if tensors is None else tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "something"}, "not a style file"),
        ({"version": "2"}, "pip install --upgrade momentnorm"),
        ({"version": "new"}, "no version"),
        ({"version": None}, "no version"),
        ({"trunk": "0123"}, "belongs to another trunk; learn one"),
        ({"trunk": None}, "belongs to another trunk; learn one"),
    ],
)
def test_wrong_metadata(style_file, changes, says):
    with pytest.raises(StylizeError, match=says):
        load_style(rewritten(style_file, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "something"}, "not a trunk file"),
        ({"width": "1000000"}, "metadata is damaged"),
        ({"width": None}, "metadata is damaged"),
        ({"blocks": "four"}, "metadata is damaged"),
        ({"width": "8"}, "has shape"),
        ({"blocks": "3"}, "is missing"),
        ({"blocks": "0"}, "does not belong here"),
    ],
)
def test_wrong_metadata_of_a_trunk(style_file, changes, says):
    with pytest.raises(StylizeError, match=says):
        load_trunk(rewritten(style_file.parent / "trunk.safetensors", **changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.to(torch.complex64), "style is of dtype C64"),
        (lambda x: x.to(torch.int32), "style is of dtype I32"),
        (lambda x: x > 0, "style is of dtype BOOL"),
        (lambda x: x.to(torch.float8_e5m2), "is of dtype F8_E5M2"),
        (lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "not finite in float32"),
        (lambda x: x / 0, "style is not finite"),
        (lambda x: x[:2], "style has shape (2,), not"),
    ],
)
def test_tensors_that_a_style_cannot_have(fails, tmp_path, photo_file, style_file, change, says):
    path = rewritten(style_file, {"style": change(load_file(style_file)["style"])})
    fails(photo_file, "--style", path, "-o", tmp_path / "out.png", says=(str(path), says))


def test_names_of_tensors_are_escaped(fails, tmp_path, photo_file, style_file):
    path = rewritten(style_file, load_file(style_file) | {"\x1b[2J": torch.zeros(1)})
    says = r"\x1b[2J does not belong here"
    fails(photo_file, "--style", path, "-o", tmp_path / "out.png", says=says)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision_is_read_as_float32(style_file, dtype):
    before = load_style(style_file).vector
    after = load_style(rewritten(style_file, {"style": before.to(dtype)})).vector
    with open(style_file, "r+b") as file:  # the vector is not the file's memory
        file.write(b"\xff" * style_file.stat().st_size)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=2**-8, atol=0)


def test_a_size_that_a_trunk_file_claims_costs_nothing(style_file, monkeypatch):
    """A small file that claims the largest trunk is refused before there is such a trunk."""
    made = []

    class Recorded(Trunk):
        def __init__(self, shape):
            super().__init__(shape)
            made.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr("momentnorm.stylize.trunk_files.Trunk", Recorded)
    with pytest.raises(StylizeError, match="is missing"):
        load_trunk(rewritten(style_file.parent / "trunk.safetensors", width="256", blocks="64"))
    assert made == [{"meta"}]


def test_a_style_of_another_trunk_is_refused(style_file):
    with pytest.raises(StylizeError, match="belongs to another trunk"):
        load_style(style_file, small_trunk(seed=1))
    with pytest.raises(StylizeError, match="belongs to another trunk"):
        load_style(style_file, Trunk(TrunkShape(width=5, blocks=2)))
    (style_file.parent / "trunk.safetensors").unlink()
    with pytest.raises(StylizeError, match="belongs to another trunk"):
        load_style(style_file)


def test_files_that_are_not_styles(tmp_path, style_file):
    path = tmp_path / "a.safetensors"
    with pytest.raises(StylizeError, match="give a style file, a picture, or one of"):
        load_style(path)
    with pytest.raises(StylizeError, match="no such file"):
        load_trunk(path)
    for content in (b"", b"hello, this is text", pickle.dumps({"a": 1}), b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(StylizeError, match="not a style file"):
            load_style(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(StylizeError, match="safetensors, but not a style file"):
        load_style(path)
    with pytest.raises(StylizeError, match="safetensors, but not a trunk file"):
        load_trunk(style_file)


def test_truncated_style(style_file):
    style_file.write_bytes(style_file.read_bytes()[:-100])
    with pytest.raises(StylizeError, match="not a style file"):
        load_style(style_file)


def test_a_blend_is_the_average_of_vectors():
    trunk = small_trunk()
    first, second = small_style(1, trunk), small_style(2, trunk)
    found = blend([(first, 0.75), (second, 0.25)])
    torch.testing.assert_close(found.vector, 0.75 * first.vector + 0.25 * second.vector)
    assert found.strength == 1
    assert found.name == "style 1+style 2"
    assert blend([(first, 0.1)] * 10).strength == 1


def test_what_the_weights_leave_is_the_photograph():
    trunk = small_trunk()
    first, second = small_style(1, trunk), small_style(2, trunk)
    image = torch.rand(3, 13, 18)
    half = blend([(first, 0.25), (second, 0.25)])
    whole = blend([(first, 0.5), (second, 0.5)])
    picture = stylize(image, whole)
    torch.testing.assert_close(stylize(image, half), (image + picture) / 2)
    torch.testing.assert_close(stylize(image, half, strength=0.5), 0.75 * image + 0.25 * picture)
    assert torch.equal(stylize(image, blend([(first, 1.0)])), stylize(image, first))


def test_wrong_blends():
    trunk = small_trunk()
    first, second = small_style(1, trunk), small_style(2, trunk)
    for weights in ((0.6, 0.5), (0.0, 0.0)):
        with pytest.raises(StylizeError, match="more than 0 and at most 1"):
            blend(list(zip((first, second), weights, strict=True)))
    for weights in ((-0.5, 1.0), (float("nan"), 0.5)):
        with pytest.raises(StylizeError, match="numbers from 0 to 1"):
            blend(list(zip((first, second), weights, strict=True)))
    with pytest.raises(StylizeError, match="different trunks"):
        blend([(first, 0.5), (small_style(2, small_trunk(seed=1)), 0.5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 9), (2, 3, 17, 30)])
def test_any_size_and_precision(shape, dtype):
    image, style = torch.rand(shape).to(dtype), small_style()
    picture = stylize(image, style)
    assert (picture.shape, picture.dtype) == (image.shape, dtype)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_a_batch_is_its_images():
    images, style = torch.rand(2, 3, 17, 22), small_style()
    both = stylize(images, style)
    for image, picture in zip(images, both, strict=True):
        torch.testing.assert_close(stylize(image, style), picture, rtol=0, atol=1e-4)


def test_the_trunks_file_is_the_trunk(tmp_path):
    trunk = small_trunk(shape=SHAPE)
    save_trunk(trunk, tmp_path / "trunk.safetensors")
    assert trunk_identity(load_trunk(tmp_path / "trunk.safetensors")) == trunk_identity(trunk)
