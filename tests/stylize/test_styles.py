"""Style files: what is saved comes back, and nothing else is accepted."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from momentnorm.stylize import (
    Network,
    Settings,
    Style,
    StylizeError,
    bundled_styles,
    load_style,
    save_style,
    stylize,
)
from momentnorm.stylize.bundle import RECIPES
from momentnorm.stylize.command_train import add_settings, read_settings
from momentnorm.stylize.network import NORMS
from momentnorm.stylize.styles import FOLDER
from support.stylize_samples import small_network


@pytest.mark.parametrize("norm", NORMS)
def test_there_and_back(tmp_path, norm):
    network = small_network(norm)
    path = tmp_path / "a.safetensors"
    save_style(Style(network, picture="waves", training={"seed": 3}), path)
    style = load_style(path)
    assert style.name == "a"
    assert style.picture == "waves"
    assert style.training == {"seed": 3}
    assert style.license.startswith("Apache-2.0")
    assert style.network.architecture == network.architecture
    assert not style.network.training
    image = torch.rand(3, 16, 20)
    torch.testing.assert_close(stylize(image, style), stylize(image, network), rtol=0, atol=0.01)


def test_the_same_style_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        style = Style(small_network(), picture="waves ♪", training={"b": 1, "a": 2})
        save_style(style, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["picture"] == "waves ♪"
        assert json.loads(file.metadata()["training"]) == {"a": 2, "b": 1}
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118


def rewritten(path, tensors=None, **changes):
    """The style file with other tensors or metadata."""
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
        ({"norm": "weight"}, "metadata is damaged"),
        ({"width": None}, "metadata is damaged"),
        ({"width": "four"}, "metadata is damaged"),
        ({"width": "1000000"}, "metadata is damaged"),
        ({"training": "{"}, "metadata is damaged"),
        ({"training": "[1]"}, "metadata is damaged"),
        ({"width": "8"}, "has shape"),
        ({"blocks": "2"}, "is missing"),
        ({"blocks": "0"}, "does not belong here"),
        ({"norm": "batch"}, "is missing"),
    ],
)
def test_wrong_metadata(style_file, changes, says):
    with pytest.raises(StylizeError, match=says):
        load_style(rewritten(style_file, **changes))


def test_weights_that_are_not_finite(style_file):
    tensors = load_file(style_file)
    tensors["leave.bias"][1] = float("nan")
    with pytest.raises(StylizeError, match=r"leave\.bias is not finite"):
        load_style(rewritten(style_file, tensors))


def tensors_with(name, change):
    def changed(tensors):
        return tensors | {name: change(tensors[name])}

    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (tensors_with("leave.bias", lambda x: x.to(torch.complex64)), "leave.bias is of dtype C64"),
        (tensors_with("leave.bias", lambda x: x.to(torch.int32)), "leave.bias is of dtype I32"),
        (tensors_with("leave.weight", lambda x: x > 0), "leave.weight is of dtype BOOL"),
        (tensors_with("leave.bias", lambda x: x.to(torch.float8_e5m2)), "is of dtype F8_E5M2"),
        (
            tensors_with("leave.bias", lambda x: torch.full_like(x, 1e300, dtype=torch.float64)),
            "leave.bias is not finite in float32",
        ),
        (tensors_with("leave.bias", lambda x: x[:2]), "leave.bias has shape (2,), not (3,)"),
        (lambda tensors: tensors | {"\x1b[2J": torch.zeros(1)}, r"\x1b[2J does not belong here"),
    ],
)
def test_tensors_that_a_network_cannot_have(fails, tmp_path, photo_file, style_file, change, says):
    path = rewritten(style_file, change(load_file(style_file)))
    fails(photo_file, "--style", path, "-o", tmp_path / "out.png", says=(str(path), says))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision_is_read_as_float32(style_file, dtype):
    before = load_style(style_file).network.state_dict()
    tensors = {name: value.to(dtype) for name, value in load_file(style_file).items()}
    after = load_style(rewritten(style_file, tensors)).network.state_dict()
    with open(style_file, "r+b") as file:  # the network is not the file's memory
        file.write(b"\xff" * style_file.stat().st_size)
    for name, value in after.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, before[name], rtol=2**-8, atol=0)


def test_what_a_file_claims_costs_nothing(style_file, monkeypatch):
    """A small file that claims the largest network is refused before there is such a network."""
    made = []

    class Recorded(Network):
        def __init__(self, architecture):
            super().__init__(architecture)
            made.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr("momentnorm.stylize.styles.Network", Recorded)
    with pytest.raises(StylizeError, match="is missing"):
        load_style(rewritten(style_file, width="256", blocks="64"))
    assert made == [{"meta"}]
    load_style(rewritten(style_file, width="4", blocks="1"))


@pytest.mark.parametrize("brackets", ["[", '{"a":'])
def test_metadata_of_brackets(fails, tmp_path, photo_file, style_file, brackets):
    path = rewritten(style_file, training=brackets * 100_000)
    fails(photo_file, "--style", path, "-o", tmp_path / "out.png", says="the metadata is damaged")


def test_files_that_are_not_styles(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(StylizeError, match="give a style file or one of"):
        load_style(path)
    for content in (b"", b"hello, this is text", pickle.dumps({"a": 1}), b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(StylizeError, match="not a style file"):
            load_style(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(StylizeError, match="safetensors, but not a style file"):
        load_style(path)


def test_truncated_style(style_file):
    style_file.write_bytes(style_file.read_bytes()[:-100])
    with pytest.raises(StylizeError, match="not a style file"):
        load_style(style_file)


def test_bundled_styles_are_small_and_differ():
    names = bundled_styles()
    assert len(names) >= 3
    image = torch.rand(3, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    pictures = []
    for name in names:
        assert (FOLDER / f"{name}.safetensors").stat().st_size < 1_000_000
        style = load_style(name)
        assert style.network.architecture.norm == "instance"
        assert style.picture
        assert style.license.startswith("Apache-2.0")
        pictures.append(stylize(image, style))
    for i, picture in enumerate(pictures):
        assert (picture - image).abs().mean() > 0.05
        for other in pictures[:i]:
            assert (picture - other).abs().mean() > 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_bundled_styles_were_trained_by_their_recipes(name):
    parser = argparse.ArgumentParser()
    add_settings(parser, Settings())
    settings = read_settings(parser.parse_args(RECIPES[name]))
    training = load_style(name).training
    for key, value in dataclasses.asdict(settings).items():
        assert training[key] == value, key


def test_every_bundled_style_has_a_recipe():
    assert sorted(RECIPES) == bundled_styles()
