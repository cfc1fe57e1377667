"""``momentnorm stylize PHOTO...`` from the command line to the files."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from momentnorm.stylize import Trunk, bundled_styles, load_style, read_photo, stylize
from support.stylize_samples import pixels


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (17, 30), (64, 48), (33, 2)])
def test_the_output_has_the_inputs_size(run, tmp_path, style_file, size):
    width, height = size
    Image.fromarray(pixels(height, width)).save(tmp_path / "in.png")
    outcome = run(tmp_path / "in.png", "--style", style_file, "-o", tmp_path / "out.png")
    assert outcome == (0, f"{tmp_path / 'out.png'}\n", "")
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == size


def test_the_picture_is_that_of_the_api(run, tmp_path, style_file, photo_file):
    out = tmp_path / "out.png"
    assert run(photo_file, "--style", style_file, "-o", out).code == 0
    expected = stylize(read_photo(photo_file).rgb, load_style(style_file))
    assert (read_photo(out).rgb - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_size_option(run, tmp_path, style_file, photo_file):
    out = tmp_path / "out.jpg"
    assert run(photo_file, "--style", style_file, "-o", out, "--size", 26).code == 0
    with Image.open(out) as image:
        assert image.size == (26, 20)


def test_strength_zero_is_the_photograph(run, tmp_path, style_file):
    rgba = np.concatenate([pixels(30, 41), pixels(30, 41, 1, seed=5)], -1)
    rgba[:5, :5, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    assert run(tmp_path / "in.png", "--style", style_file, "-o", out, "--strength", 0).code == 0
    with Image.open(out) as image:
        assert (np.asarray(image) == rgba).all()


def test_strength_mixes(run, tmp_path, style_file, photo_file):
    pictures = []
    for strength in (0, 0.5, 1):
        out = tmp_path / f"{strength}.png"
        run(photo_file, "--style", style_file, "-o", out, "--strength", strength)
        pictures.append(read_photo(out).rgb)
    middle = (pictures[0] + pictures[2]) / 2
    assert (pictures[1] - middle).abs().max() < 1.1 / 255


def test_transparency_stays_and_what_it_hides_does_not_matter(run, tmp_path, style_file):
    rgba = np.concatenate([pixels(30, 41), np.full((30, 41, 1), 255, np.uint8)], -1)
    rgba[:, 20:, 3] = 0
    pictures = []
    for hidden in (0, 255):
        rgba[:, 20:, :3] = hidden
        Image.fromarray(rgba).save(tmp_path / "in.png")
        run(tmp_path / "in.png", "--style", style_file, "-o", tmp_path / "out.png", "--force")
        photo = read_photo(tmp_path / "out.png")
        assert torch.equal(photo.alpha[0] == 1, torch.from_numpy(rgba[..., 3] == 255))
        pictures.append(photo.rgb)
    assert torch.equal(pictures[0], pictures[1])


def test_keep_color_of_a_grey_photograph_is_grey(run, tmp_path, style_file):
    Image.fromarray(pixels(30, 40)[..., 0]).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    run(tmp_path / "in.png", "--style", style_file, "-o", out)
    assert np.ptp(read_photo(out).rgb.numpy(), axis=0).max() > 0.02
    run(tmp_path / "in.png", "--style", style_file, "-o", out, "--keep-color", "--force")
    assert np.ptp(read_photo(out).rgb.numpy(), axis=0).max() == 0


def test_a_folder(run, tmp_path, style_file):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "c.gif"):
        Image.fromarray(pixels(20, 24)).save(folder / name)
    (folder / "notes.txt").write_text("not a photograph")
    (folder / "._a.jpg").write_text("what macOS leaves beside a photograph")
    out = tmp_path / "deep" / "out"
    outcome = run(folder, "--style", style_file, "-o", out)
    assert outcome.code == 0
    assert sorted(file.name for file in out.iterdir()) == ["a.jpg", "b.png", "c.png"]
    assert outcome.out.splitlines() == [str(out / name) for name in ("a.jpg", "b.png", "c.png")]


def test_a_photograph_into_a_folder_that_is_there(run, tmp_path, style_file, photo_file):
    (tmp_path / "out").mkdir()
    assert run(photo_file, "--style", style_file, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "photo.png").exists()


def test_the_same_name_twice(run, tmp_path, style_file):
    sources = []
    for index, name in enumerate(("x/p.png", "y/p.png", "x/p.gif", "z/P.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(10, 11 + index)).save(path)
        sources.append(path)
    out = tmp_path / "out"
    assert run(*sources, "--style", style_file, "-o", out).code == 0
    widths = {file.name: read_photo(file).rgb.shape[2] for file in out.iterdir()}
    assert widths == {"p.png": 11, "p-2.png": 12, "p-3.png": 13, "P-4.png": 14}


def test_many_files_go_on(run, tmp_path, style_file, photo_file):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    out = tmp_path / "out"
    missing = tmp_path / "missing.png"
    outcome = run(bad, photo_file, missing, "--style", style_file, "-o", out)
    assert outcome.code == 2
    assert [file.name for file in out.iterdir()] == ["photo.png"]
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert "not an image" in lines[0]
    assert "no such file" in lines[1]
    assert "2 of 3 photographs failed" in lines[2]
    assert str(bad) in lines[2]
    assert str(missing) in lines[2]


def test_what_is_there_is_not_replaced(run, fails, tmp_path, style_file, photo_file):
    precious = tmp_path / "out" / "photo.png"  # no photograph of this command's
    precious.parent.mkdir()
    precious.write_bytes(b"precious")
    second = tmp_path / "second.png"
    Image.fromarray(pixels(8, 8)).save(second)
    for sources, out in (
        ([photo_file], precious),
        ([photo_file], precious.parent),
        ([second, photo_file], precious.parent),
    ):
        fails(*sources, "--style", style_file, "-o", out, says=(str(precious), "add --force"))
    assert precious.read_bytes() == b"precious"
    assert list(precious.parent.iterdir()) == [precious], "refused before anything is done"
    assert run(second, photo_file, "--style", style_file, "-o", out, "--force").code == 0
    assert read_photo(precious).rgb.shape == (3, 40, 52)


def test_a_link_that_leads_nowhere_is_not_replaced(run, fails, tmp_path, style_file, photo_file):
    out = tmp_path / "out.png"
    out.symlink_to(tmp_path / "elsewhere" / "later.png")
    fails(photo_file, "--style", style_file, "-o", out, says="add --force")
    assert out.is_symlink()
    assert run(photo_file, "--style", style_file, "-o", out, "--force").code == 0
    assert out.is_file()
    assert not out.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_do_not_reach_the_terminal_as_they_are(run, fails, tmp_path, style_file, photo_file):
    name = "a\x1b[31m\n\u202eb"
    escaped = r"a\x1b[31m\n\u202eb"
    photo = tmp_path / f"{name}.png"
    photo_file.rename(photo)
    out = tmp_path / "out"
    outcome = run(photo, photo, "--style", style_file, "-o", out)
    assert outcome.out == f"{out}/{escaped}.png\n{out}/{escaped}-2.png\n"
    fails(tmp_path / f"{name}.jpg", "--style", style_file, "-o", out, says=escaped)
    fails(photo, "--style", tmp_path / name, "-o", out, says=escaped)
    fails(photo, f"--{name}", says=escaped)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / f"{name}.png").write_bytes(b"damaged")
    outcome = run(photo, tmp_path / "bad", "--style", style_file, "-o", tmp_path / "more")
    assert outcome.err.count("\n") == 2
    assert outcome.err.replace("\n", "").isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_one_line(fails, tmp_path, style_file, photo_file):
    fifo, out = tmp_path / "fifo", tmp_path / "out.png"
    os.mkfifo(fifo)
    fails(fifo, "--style", style_file, "-o", out, says="not a regular file")
    fails(photo_file, "--style", fifo, "-o", out, says=str(fifo))
    usual = ("--content", tmp_path, "-o", tmp_path / "my.safetensors")
    fails("learn", fifo, *usual, says="not a regular file")
    fails("learn", photo_file, *usual, "--vgg", fifo, says=str(fifo))


def test_photographs_are_not_replaced(run, fails, tmp_path, style_file, photo_file):
    before = photo_file.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(photo_file)
    for out in (photo_file, link, photo_file.parent):
        fails(photo_file, "--style", style_file, "-o", out, says="add --force")
    other = tmp_path / "other" / "photo.png"
    other.parent.mkdir()
    Image.fromarray(pixels(8, 8)).save(other)
    # other/photo.png would become photo.png, which is the second photograph
    fails(other, photo_file, "--style", style_file, "-o", tmp_path, says="add --force")
    assert photo_file.read_bytes() == before
    assert run(photo_file, "--style", style_file, "-o", photo_file, "--force").code == 0
    assert photo_file.read_bytes() != before


def test_wrong_input_is_one_line(fails, tmp_path, style_file, photo_file):
    out = tmp_path / "out.png"
    usual = (photo_file, "--style", style_file, "-o", out)
    text = tmp_path / "text.png"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()

    fails(tmp_path / "no.png", *usual[1:], says="no such file")
    fails(text, *usual[1:], says="not an image")
    fails(tmp_path / "empty", *usual[1:], says="no image files")
    fails(photo_file, "--style", "nonsense", "-o", out, says="no style 'nonsense'")
    fails(*usual[:3], "-o", tmp_path / "out.xyz", says=("'.xyz'", ".png"))
    fails(*usual[:3], "-o", tmp_path / "no" / "out.png", says="create it first")
    fails(photo_file, photo_file, "--style", style_file, "-o", style_file, says="need a folder")
    fails(*usual, "--strength", 2, says="between 0 and 1")
    fails(*usual, "--strength", "x", says=("--strength", "--help"))
    fails(*usual, "--size", 0, says="whole number from 1 up")
    fails(*usual, "--device", "toaster", says="--device cpu")
    fails(*usual, "--device", "meta", says="--device cpu")
    fails(*usual[:3], says="-o OUT is needed")
    fails(*usual[1:], says="PHOTO is needed")
    fails(photo_file, "-o", out, says="--style is needed")
    assert not out.exists()


def test_a_pictures_name_is_no_folder(fails, tmp_path, style_file, photo_file):
    out = tmp_path / "out.jpg"
    fails(photo_file, photo_file, "--style", style_file, "-o", out, says="need a folder")
    fails(photo_file.parent, "--style", style_file, "-o", out, says="need a folder")
    assert not out.exists()


def test_one_failure_is_one_line(fails, tmp_path, style_file, photo_file, monkeypatch):
    def no_memory(self, x, style):
        raise MemoryError

    monkeypatch.setattr(Trunk, "forward", no_memory)
    fails(photo_file, "--style", style_file, "-o", tmp_path / "out.png", says="--size 26")


def test_too_little_memory_is_seen_before(fails, tmp_path, style_file, photo_file, monkeypatch):
    monkeypatch.setattr("momentnorm.stylize.apply.available_memory", lambda: 50_000)
    fails(photo_file, "--style", style_file, "-o", tmp_path / "out.png", says="--size")


def test_ctrl_c(run, tmp_path, style_file, photo_file, monkeypatch):
    def interrupted(self, x, style):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trunk, "forward", interrupted)
    outcome = run(photo_file, "--style", style_file, "-o", tmp_path / "out.png")
    assert outcome == (130, "", "momentnorm stylize: stopped\n")
    assert not (tmp_path / "out.png").exists()


def test_a_photograph_of_scikit_image(run, tmp_path, style_file):
    pytest.importorskip("skimage")
    out = tmp_path / "out.png"
    assert run("skimage:coffee", "--style", style_file, "-o", out, "--size", 60).code == 0
    with Image.open(out) as image:
        assert image.size == (60, 40)
    folder = tmp_path / "out"
    run("skimage:moon", "skimage:rocket", "--style", style_file, "-o", folder, "--size", 40)
    assert sorted(file.name for file in folder.iterdir()) == ["moon.png", "rocket.png"]


def test_list(run, tmp_path):
    outcome = run("--list")
    assert outcome.code == 0
    for words in ("mosaic", "10 kB", "stained-glass"):
        assert words in outcome.out


def test_a_sheet_shows_a_photograph_in_every_style(run, fails, tmp_path, photo_file, monkeypatch):
    monkeypatch.setattr("momentnorm.stylize.sheet.CELL", 48)
    out = tmp_path / "sheet.png"
    assert run("--list", photo_file, "-o", out) == (0, f"{out}\n", "")
    with Image.open(out) as sheet:
        assert sheet.size == (8 * 48, len(bundled_styles()) // 4 * 72)
    fails("--list", photo_file, "-o", out, says="add --force")
    fails("--list", photo_file, photo_file, "-o", out, says="one PHOTO")


def test_list_without_scikit_image(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("momentnorm.stylize.sheet.bundled_styles", lambda: ["wave"])
    assert run("--list", "-o", tmp_path / "sheet.jpg").code == 0
    assert (tmp_path / "sheet.jpg").exists()


def test_draw(run, fails, tmp_path):
    out = tmp_path / "style.png"
    assert run("draw", "swirl", "-o", out, "--size", 64) == (0, f"{out}\n", "")
    with Image.open(out) as image:
        assert image.size == (64, 64)
    fails("draw", "nothing", "-o", out, says="mosaic")
    fails("draw", "swirl", "-o", tmp_path / "style.doc", says=".png")
