"""``momentnorm stylize learn`` and ``train``, and pictures given as ``--style``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from momentnorm.stylize import (
    StylizeError,
    Trunk,
    load_style,
    load_trunk,
    read_photo,
    style_argument,
    stylize,
)
from momentnorm.stylize.features import RandomFeatures
from momentnorm.stylize.trunk_files import trunk_identity
from support.stylize_samples import pixels

OPTIONS = ("--steps", 4, "--batch", 1, "--size", 32, "--style-size", 48)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels(60, 60, seed=3)).save(path)
    return path


@pytest.fixture(autouse=True)
def small_loss_network(monkeypatch):
    """A random loss network, which is there on every machine and quick."""

    def choose(vgg, content, note=None):
        random = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return RandomFeatures(random)

    for module in ("command_learn", "command_train", "style_argument"):
        monkeypatch.setattr(f"momentnorm.stylize.{module}.loss_network", choose)


@pytest.fixture
def command(tmp_path, folder, picture, style_file):
    """Learn on a small trunk."""
    out = tmp_path / "my.safetensors"
    trunk = style_file.parent / "trunk.safetensors"
    return ("learn", picture, "--trunk", trunk, "--content", folder, "-o", out, *OPTIONS)


def names(folder):
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def test_learn(run, tmp_path, command, style_file):
    out = tmp_path / "my.safetensors"
    outcome = run(*command, "--preview-every", 2, "--checkpoint-every", 2)
    assert outcome == (0, f"{out}\n", "")
    assert names(tmp_path) == [
        "my-preview-00002.png",
        "my-preview-00004.png",
        "my.safetensors",
        "picture.png",
    ]
    trunk = load_trunk(style_file.parent / "trunk.safetensors")
    assert load_style(out, trunk).picture == "picture.png"
    first = out.read_bytes()
    run(*command)
    assert out.read_bytes() == first, "previews change nothing, and the file is the same bytes"


def test_a_style_that_cannot_be_written_is_not_lost(run, fails, tmp_path, command, monkeypatch):
    out, checkpoint = tmp_path / "my.safetensors", tmp_path / "my.checkpoint.safetensors"
    assert run(*command).code == 0
    expected = out.read_bytes()
    out.unlink()

    def full(style, path):
        raise StylizeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("momentnorm.stylize.command_learn.save_style", full)
        fails(*command, says=("the disk is full", f"--checkpoint {checkpoint}"))
    assert not out.exists()

    def no_step(self):
        raise AssertionError("every step was done")

    monkeypatch.setattr("momentnorm.stylize.trunk_training.StyleTraining.step", no_step)
    elsewhere = tmp_path / "elsewhere.safetensors"
    assert run(*command, "-o", elsewhere, "--checkpoint", checkpoint).code == 0
    assert elsewhere.read_bytes() == expected
    assert not checkpoint.exists()


def test_wrong_commands(fails, tmp_path, folder, picture, command, style_file):
    out = tmp_path / "my.safetensors"
    fails("learn", "-o", out, says="PICTURE")
    fails(*command, "-o", tmp_path / "my.pth", says=".safetensors")
    fails(*command, "-o", tmp_path / "no" / "my.safetensors", says="create it first")
    fails("learn", tmp_path / "no.png", *command[2:], says="no such file")
    fails(*command, "--content", tmp_path / "no", says="no such folder")
    fails(*command, "--trunk", style_file, says="not a trunk file")
    fails(*command, "--steps", "x", says="--steps")
    fails(*command, "--size", 33, says="multiple of 4")
    fails(*command, "--device", "toaster", says="--device cpu")
    before = picture.read_bytes()
    fails(*command, "--checkpoint", folder, says="is a folder; name a file")
    fails(*command, "--checkpoint", picture / "x.st", says="create it first")
    fails(*command, "--checkpoint", out, says="name another --checkpoint")
    fails(*command, "--checkpoint", picture, "--restart", says="not a checkpoint file")
    fails(*command, "--checkpoint", style_file, "--restart", says="not a checkpoint file")
    assert picture.read_bytes() == before
    assert not out.exists()
    Image.new("RGB", (60, 9)).save(picture)
    fails(*command, says="at least 32")


def test_the_first_photograph_is_unreadable(run, tmp_path, folder, command):
    (folder / "0.png").write_bytes(b"damaged")
    outcome = run(*command, "--preview-every", 4)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "left out: " + str(folder / "0.png") in outcome.err
    assert (tmp_path / "my-preview-00004.png").exists()


def test_out_of_memory(fails, command, monkeypatch):
    def no_memory(self, x, style):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Trunk, "forward", no_memory)
    fails(*command, says="smaller --size or --batch")


def test_without_scikit_image(fails, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    at = command.index("--content")
    fails(*command[:at], *command[at + 2 :], says="pip install scikit-image")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(run, tmp_path, command, number):
    command = [*command, "--steps", "400", "--vgg", "small"]
    code = (
        "import sys, torch\n"
        "from momentnorm.stylize import command_learn\n"
        "from momentnorm.stylize.features import RandomFeatures\n"
        "random = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "command_learn.loss_network = lambda *arguments: RandomFeatures(random)\n"
        "from momentnorm.cli import main\n"
        "sys.exit(main(['stylize', *sys.argv[1:]]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--preview-every", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("my-preview-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    first, second = err.splitlines()
    assert "again to stop at once" in first
    assert "the same command goes on" in second
    assert not (tmp_path / "my.safetensors").exists()
    assert (tmp_path / "my.checkpoint.safetensors").exists()
    assert "of another training" in run(*command, "--steps", 4).err
    assert run(*command, "--steps", 4, "--restart").code == 0
    assert not (tmp_path / "my.checkpoint.safetensors").exists()


def test_train_writes_a_trunk_and_its_styles(run, fails, tmp_path, folder, picture):
    out = tmp_path / "out"
    small = ("--width", 4, "--blocks", 1, "--content", folder, *OPTIONS)
    assert run("train", picture, folder / "0.png", "-o", out, *small) == (0, f"{out}\n", "")
    styles = ("0", "picture", "trunk")
    assert names(out) == [f"{name}.safetensors" for name in styles]
    style = load_style(out / "picture.safetensors")
    assert trunk_identity(style.trunk) == trunk_identity(load_trunk(out / "trunk.safetensors"))
    photo = tmp_path / "painted.png"
    blend = f"{out / '0.safetensors'}:0.5,{out / 'picture.safetensors'}:0.25"
    assert run(folder / "0.png", "--style", blend, "-o", photo).code == 0
    fails("train", picture, picture, "-o", out, *small, says="rename the file")
    (tmp_path / "empty").mkdir()
    fails("train", tmp_path / "empty", "-o", out, *small, says="no image files")


@pytest.fixture
def cache(tmp_path, folder, monkeypatch):
    """A cache in the test's folder, and a quick training for it."""
    monkeypatch.setenv("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", str(tmp_path / "c"))
    content = [str(file) for file in sorted(folder.iterdir())]
    small = {"steps": 2, "batch": 1, "size": 32, "style_size": 48}
    monkeypatch.setattr(style_argument, "LEARN", replace(style_argument.LEARN, **small))
    monkeypatch.setattr(style_argument, "training_photographs", lambda folder: content)
    return tmp_path / "c" / "momentnorm" / "styles"


def test_a_picture_as_style_is_learned_once(run, tmp_path, photo_file, picture, cache):
    assert style_argument.cache_folder() == cache
    out = tmp_path / "out.png"
    outcome = run(photo_file, "--style", picture, "-o", out)
    assert outcome.code == 0
    assert outcome.out == f"{out}\n"
    (name,) = names(cache)
    assert outcome.err.count("\n") == 1
    assert f"learning the style of {picture}" in outcome.err
    assert f"kept in {cache / name}" in outcome.err
    expected = stylize(read_photo(photo_file).rgb, load_style(cache / name))
    assert (read_photo(out).rgb - expected).abs().max() <= 0.5 / 255 + 1e-6
    again = run(photo_file, "--style", f"{picture}:0.5,wave:0.5", "-o", out, "--force")
    assert again == (0, f"{out}\n", "")
    Image.fromarray(pixels(60, 60, seed=4)).save(picture)
    assert "learning the style" in run(photo_file, "--style", picture, "-o", out, "--force").err
    assert len(names(cache)) == 2


def test_a_style_argument_is_taken_apart(tmp_path, monkeypatch):
    assert style_argument.parse("mosaic") == [("mosaic", 1.0)]
    assert style_argument.parse("mosaic:0.7") == [("mosaic", 0.7)]
    assert style_argument.parse("mosaic:0.6, swirl:0.4") == [("mosaic", 0.6), ("swirl", 0.4)]
    assert style_argument.parse("a,b,c,d") == [(name, 0.25) for name in "abcd"]
    assert style_argument.parse(r"C:\my.safetensors") == [(r"C:\my.safetensors", 1.0)]
    assert style_argument.parse(r"C:\my.safetensors:0.5") == [(r"C:\my.safetensors", 0.5)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b:0.5").touch()
    assert style_argument.parse("a,b:0.5") == [("a,b:0.5", 1.0)]


def test_wrong_style_arguments(fails, tmp_path, photo_file):
    out = tmp_path / "out.png"
    for text, says in (
        ("mosaic,", "empty style"),
        (":0.5", "empty style"),
        ("mosaic:0.5,swirl", "all or none"),
        ("mosaic:0.8,swirl:0.8", "at most 1"),
        ("mosaic:-1", "numbers from 0 to 1"),
        ("mosaic:nan", "numbers from 0 to 1"),
        ("mosaic:0.5,nonsense:0.5", "no style 'nonsense'"),
    ):
        fails(photo_file, "--style", text, "-o", out, says=says)
    assert not out.exists()
