"""Training: it learns, it repeats itself to the bit, and it survives being stopped."""

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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from momentnorm.stylize import Network, Settings, StylizeError, load_style, train
from momentnorm.stylize.content import LONGEST, Crops, content_files, read_first
from momentnorm.stylize.features import RandomFeatures
from momentnorm.stylize.network import NORMS
from support.faults import Faults
from support.stylize_samples import pixels

TINY = Settings(width=4, blocks=1, steps=6, batch=2, size=32, style_size=48)
OPTIONS = ("--width", 4, "--blocks", 1, "--steps", 6, "--size", 32, "--style-size", 48)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    for index, size in enumerate(((50, 70), (32, 90), (100, 64))):
        Image.fromarray(pixels(*size, seed=index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def picture():
    return torch.from_numpy(pixels(64, 80, seed=9)).permute(2, 0, 1).float() / 255


def same(first, second) -> bool:
    first, second = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


def test_it_learns(folder, picture):
    losses = []
    settings = Settings(width=8, blocks=1, steps=40, batch=2, size=32, style_size=48)
    train(
        picture,
        content_files(folder),
        settings,
        on_step=lambda step, found, network: losses.append(found["loss"]),
    )
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("norm", NORMS)
def test_a_seed_is_a_result(folder, picture, norm):
    settings = replace(TINY, norm=norm, steps=3)
    first, again = (train(picture, content_files(folder), settings) for _ in range(2))
    assert same(first, again)
    assert first.training == again.training
    other = train(picture, content_files(folder), replace(settings, seed=1))
    assert not same(first, other)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_stopping_changes_nothing(tmp_path, folder, picture, norm):
    settings = replace(TINY, norm=norm)
    whole = train(picture, content_files(folder), settings)
    checkpoint = tmp_path / "checkpoint.safetensors"
    seen = []
    while len(seen) < 6:
        style = train(
            picture,
            content_files(folder),
            settings,
            checkpoint=checkpoint,
            on_step=lambda step, losses, network: seen.append(step),
            should_stop=lambda: len(seen) in (2, 5),
        )
        assert (style is None) == (len(seen) < 6)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert same(whole, style)


def test_a_checkpoint_of_another_training(tmp_path, folder, picture):
    checkpoint = tmp_path / "checkpoint.safetensors"
    files = content_files(folder)
    train(picture, files, TINY, checkpoint=checkpoint, should_stop=lambda: True)
    for other_picture, other_files, settings, says in (
        (picture, files, replace(TINY, lr=0.1, seed=4), "lr, seed differs"),
        (1 - picture, files, TINY, "style_picture differs"),
        (picture, files[1:], TINY, "content differs"),
    ):
        with pytest.raises(StylizeError, match=says):
            train(other_picture, other_files, settings, checkpoint=checkpoint)
    checkpoint.write_bytes(b"nonsense")
    with pytest.raises(StylizeError, match="not a checkpoint file"):
        train(picture, files, TINY, checkpoint=checkpoint)


@pytest.mark.parametrize("norm", ["switchable", "none"])
def test_a_checkpoint_of_each_kind_of_norm(tmp_path, folder, picture, norm):
    settings = replace(TINY, norm=norm, steps=2, batch=1)
    files, path = content_files(folder), tmp_path / "checkpoint.safetensors"
    assert train(picture, files, settings, checkpoint=path, should_stop=lambda: True) is None
    resumed = train(picture, files, settings, checkpoint=path)
    assert same(resumed, train(picture, files, settings))


def changed(name, value):
    return lambda tensors, metadata: tensors.update({name: value(tensors[name])})


#: What is done to the tensors and the metadata of a checkpoint, and what is said of it.
DAMAGE = [
    (lambda tensors, metadata: metadata.pop("step"), "the step is not a number from 1 to 6"),
    (lambda tensors, metadata: metadata.update(step="7"), "the step is not a number"),
    (lambda tensors, metadata: metadata.update(step="-1"), "the step is not a number"),
    (lambda tensors, metadata: metadata.update(training="[" * 100_000), "its metadata differs"),
    (lambda tensors, metadata: tensors.pop("adam.0.step"), "adam.0.step is missing"),
    (lambda tensors, metadata: tensors.update(adam=torch.zeros(1)), "does not belong here"),
    (changed("adam.0.step", lambda x: -x), "cannot be those of that many steps"),
    (changed("adam.0.exp_avg_sq", lambda x: x - 1), "cannot be those of that many steps"),
    (changed("adam.1.exp_avg", lambda x: x[1:]), "adam.1.exp_avg has shape"),
    (changed("network.leave.bias", lambda x: x / 0), "leave.bias is not finite"),
    (changed("network.leave.bias", lambda x: x > 0), "leave.bias is of dtype BOOL"),
]


def test_a_damaged_checkpoint_is_one_line(tmp_path, folder, picture):
    path, files = tmp_path / "checkpoint.safetensors", content_files(folder)
    features = RandomFeatures(Crops(files, TINY.size, 0).batch(0, 2), 0)
    options = {"features": features, "checkpoint": path}
    train(picture, files, TINY, should_stop=lambda: True, **options)
    for change, says in DAMAGE:
        tensors, damaged = load_file(path), tmp_path / "damaged.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        change(tensors, metadata)
        save_file(tensors, damaged, metadata)
        with pytest.raises(StylizeError) as found:
            train(picture, files, TINY, **options | {"checkpoint": damaged})
        assert says in str(found.value)
        assert "name another one with --checkpoint" in str(found.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_no_checkpoint(tmp_path, folder, picture):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StylizeError, match="not a regular file"):
        train(picture, content_files(folder), TINY, checkpoint=tmp_path / "fifo")


def test_a_checkpoint_that_fails_at_any_call_loses_nothing(tmp_path, folder, picture, monkeypatch):
    """Wherever the disk gives up, the same command goes on, and ends with the same bits."""
    path, files = tmp_path / "checkpoint.safetensors", content_files(folder)
    settings = replace(TINY, steps=2, batch=1)
    features = RandomFeatures(Crops(files, settings.size, 0).batch(0, 2), 0)
    options = {"features": features, "checkpoint": path}
    train(picture, files, settings, should_stop=lambda: True, **options)
    first = path.read_bytes()
    whole = train(picture, files, settings, **options)
    for at in range(1, 100):
        path.write_bytes(first)
        with monkeypatch.context() as patch:
            faults = Faults(patch, at)
            failure = None
            try:
                train(picture, files, settings, **options)
            except StylizeError as error:
                failure = str(error)
        assert failure is None or "Input/output error" in failure
        names = {file.name for file in tmp_path.iterdir()}
        assert names <= {path.name, folder.name}, "no temporary file stays"
        assert same(train(picture, files, settings, **options), whole), faults.calls
        if not faults.happened:
            break
    assert faults.calls.count("replace") == 1


def test_a_loss_that_runs_away(folder, picture):
    with pytest.raises(StylizeError, match="lower --lr"):
        train(1e30 * picture, content_files(folder), TINY)


def test_settings_are_checked():
    for wrong in (
        {"steps": 0},
        {"batch": 0},
        {"size": 30},
        {"size": 16},
        {"style_size": 8},
        {"lr": float("nan")},
        {"seed": -1},
        {"feature_seed": 2**64},
        {"tv_weight": -1.0},
        {"width": 0},
        {"norm": "no"},
    ):
        with pytest.raises(StylizeError):
            Settings(**wrong)


def test_crops(folder):
    crops = Crops(content_files(folder), 40, seed=1)
    batch = crops.batch(3, 5)
    assert batch.shape == (5, 3, 40, 40)
    assert 0 <= batch.min() < batch.max() <= 1
    assert torch.equal(batch, Crops(content_files(folder), 40, seed=1).batch(3, 5))
    assert not torch.equal(batch, crops.batch(4, 5))
    assert not torch.equal(batch, Crops(content_files(folder), 40, seed=2).batch(3, 5))


def test_large_photographs_are_scaled_down(tmp_path):
    Image.fromarray(pixels(30, LONGEST * 2)).save(tmp_path / "a.png")
    crops = Crops(content_files(tmp_path), 32, seed=0)
    assert crops._photo(0).shape == (3, 15, LONGEST)


def test_out_of_memory(fails, tmp_path, folder, monkeypatch):
    def no_memory(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Network, "forward", no_memory)
    out = tmp_path / "my.safetensors"
    usual = ("train", "--style", "mosaic", "--content", folder, "-o", out, *OPTIONS)
    fails(*usual, says="smaller --size or --batch")


def test_a_damaged_photograph_is_left_out(folder):
    (folder / "1.png").write_bytes(b"damaged")
    notes = []
    crops = Crops(content_files(folder), 32, 0, notes.append)
    crops.batch(1, 20)
    assert len(notes) == 1
    assert "1.png" in notes[0]
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(StylizeError, match="none of the content photographs"):
        Crops(content_files(folder), 32, 0).batch(1, 1)


def test_content_folders(tmp_path):
    with pytest.raises(StylizeError, match="no such folder"):
        content_files(tmp_path / "no")
    with pytest.raises(StylizeError, match="no photographs"):
        content_files(tmp_path)
    assert content_files(None)[0] == "skimage:astronaut"


def test_command(run, tmp_path, folder):
    style = tmp_path / "picture.png"
    Image.fromarray(pixels(60, 60)).save(style)
    out = tmp_path / "my.safetensors"
    # A preview in training mode would move batch norm's running statistics.
    command = ("train", "--style", style, "--content", folder, "-o", out, *OPTIONS)
    command += ("--norm", "batch")
    outcome = run(*command, "--preview-every", 3, "--checkpoint-every", 2)
    assert outcome == (0, f"{out}\n", "")
    assert load_style(out).picture == "picture.png"
    assert load_style(out).training["steps"] == 6
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [
        "my-preview-00003.png",
        "my-preview-00006.png",
        "my.safetensors",
        "picture.png",
    ]
    first = out.read_bytes()
    run(*command)
    assert out.read_bytes() == first, "previews change nothing, and the file is the same bytes"
    photo = tmp_path / "out.png"
    assert run(folder / "0.png", "--style", out, "-o", photo).code == 0


def test_drawn_style_and_bundled_photographs(run, tmp_path):
    pytest.importorskip("skimage")
    out = tmp_path / "my.safetensors"
    assert run("train", "--style", "dabs", "-o", out, *OPTIONS, "--steps", 1).code == 0
    assert "pointillist" in load_style(out).picture


def test_wrong_commands(fails, tmp_path, folder):
    out = tmp_path / "my.safetensors"
    usual = ("train", "--style", "mosaic", "--content", folder, "-o", out, *OPTIONS)
    fails("train", "-o", out, says="--style")
    fails(*usual[:5], "-o", tmp_path / "my.pth", says=".safetensors")
    fails(*usual[:5], "-o", tmp_path / "no" / "my.safetensors", says="create it first")
    fails(*usual, "--style", tmp_path / "no.png", says="no such file")
    fails(*usual, "--content", tmp_path / "no", says="no such folder")
    fails(*usual, "--vgg", tmp_path / "no.pth", says="no such file")
    fails(*usual, "--norm", "weight", says="instance")
    fails(*usual, "--steps", "x", says="--steps")
    fails(*usual, "--size", 33, says="multiple of 4")
    fails(*usual, "--device", "toaster", says="--device cpu")
    Image.new("RGB", (60, 9)).save(tmp_path / "flat.png")
    fails(*usual, "--style", tmp_path / "flat.png", says="at least 32")
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(run, tmp_path, folder, number):
    out = tmp_path / "my.safetensors"
    options = (*OPTIONS, "--steps", 400)
    command = ["train", "--style", "mosaic", "--content", folder, "-o", out, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "momentnorm", "stylize", *map(str, command), "--preview-every", "1"],
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
    assert not out.exists()
    assert (tmp_path / "my.checkpoint.safetensors").exists()
    assert "of another training" in run(*command, "--steps", 6).err
    assert run(*command, "--steps", 6, "--restart").code == 0
    assert not (tmp_path / "my.checkpoint.safetensors").exists()


def test_a_style_that_cannot_be_written_is_not_lost(run, fails, tmp_path, folder, monkeypatch):
    out, checkpoint = tmp_path / "my.safetensors", tmp_path / "my.checkpoint.safetensors"
    command = ("train", "--style", "mosaic", "--content", folder, "-o", out, *OPTIONS)
    assert run(*command).code == 0
    expected = out.read_bytes()
    out.unlink()

    def full(style, path):
        raise StylizeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("momentnorm.stylize.command_train.save_style", full)
        fails(*command, says=("the disk is full", f"--checkpoint {checkpoint}"))
    assert not out.exists()

    def no_step(*arguments):
        raise AssertionError("every step was done")

    monkeypatch.setattr("momentnorm.stylize.trainer._step", no_step)
    elsewhere = tmp_path / "elsewhere.safetensors"
    assert run(*command, "-o", elsewhere, "--checkpoint", checkpoint).code == 0
    assert elsewhere.read_bytes() == expected
    assert not checkpoint.exists()


def test_where_nothing_can_be_written_is_said_before(fails, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("momentnorm.stylize.command_train.train", None)  # it is not called
    (tmp_path / "my.safetensors").mkdir()
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels(60, 60)).save(picture)
    before = picture.read_bytes()
    usual = ("train", "--style", picture, "--content", folder)
    fails(*usual, "-o", tmp_path / "my.safetensors", says="is a folder; name a file")
    usual = (*usual, "-o", tmp_path / "other.safetensors")
    for restart in ((), ("--restart",)):
        fails(*usual, "--checkpoint", folder, *restart, says="is a folder; name a file")
        fails(*usual, "--checkpoint", picture / "x.st", *restart, says="create it first")
        for same in (tmp_path / "other.safetensors", folder / ".." / "other.safetensors"):
            fails(*usual, "--checkpoint", same, *restart, says="name another --checkpoint")
    fails(*usual, "--checkpoint", picture, "--restart", says="not a checkpoint file")
    assert picture.read_bytes() == before


def test_restart_removes_no_style(fails, tmp_path, folder, style_file):
    before = style_file.read_bytes()
    fails(
        *("train", "--style", "mosaic", "--content", folder, "-o", tmp_path / "my.safetensors"),
        *("--checkpoint", style_file, "--restart", *OPTIONS),
        says=("not a checkpoint file", "name another one with --checkpoint"),
    )
    assert style_file.read_bytes() == before


@pytest.mark.parametrize("preview", [(), ("--preview-every", 3)])
def test_the_first_photograph_is_unreadable(run, tmp_path, folder, preview):
    (folder / "0.png").write_bytes(b"damaged")
    out = tmp_path / "my.safetensors"
    command = ("train", "--style", "mosaic", "--content", folder, "-o", out, *OPTIONS)
    outcome = run(*command, *preview)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "left out: " + str(folder / "0.png") in outcome.err
    assert len(list(tmp_path.glob("my-preview-*.png"))) == (2 if preview else 0)


def test_no_photograph_is_readable(folder):
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(StylizeError, match="none of the content photographs"):
        read_first(content_files(folder), 1, 32)


def test_without_scikit_image(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    usual = ("train", "--style", "mosaic", "-o", tmp_path / "my.safetensors", *OPTIONS)
    fails(*usual, says="pip install scikit-image")
