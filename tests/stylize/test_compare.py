"""``momentnorm stylize compare``: the files, and that the numbers are those of the norms."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from momentnorm.stylize.command_compare import change_contrast, hold_out, measure_contrast, smoothed
from momentnorm.stylize.features import RandomFeatures
from support.stylize_samples import pixels, small_network


def test_compare(run, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(pixels(64, 70, seed=index)).save(folder / f"{index}.png")
    out = tmp_path / "found"
    outcome = run(
        *("compare", "-o", out, "--content", folder, "--quick", "--steps", 4),
        *("--width", 4, "--blocks", 1, "--batch", 2),
    )
    assert outcome.code == 0
    assert outcome.err == ""
    assert sorted(file.name for file in out.iterdir()) == [
        "compare.png",
        "contrast.csv",
        "contrast.png",
        "losses.csv",
    ]
    for name in ("compare.png", "contrast.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200
    with open(out / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["norm"], row["step"]) for row in rows] == [
        (norm, str(step)) for norm in ("instance", "batch") for step in range(1, 5)
    ]
    assert all(float(row["loss"]) > 0 for row in rows)
    with open(out / "contrast.csv") as file:
        found = {
            (row["norm"], row["contrast"]): float(row["style_loss"]) for row in csv.DictReader(file)
        }
    assert len(found) == 6
    assert outcome.out.count("style loss") == 6
    instance = [found["instance", c] for c in ("1.0", "0.5", "0.25")]
    assert max(instance) - min(instance) < 0.02 * instance[0]


def test_contrast_matters_to_batch_norm_alone():
    random = torch.manual_seed(1)
    photographs = [torch.rand(3, 40, 40, generator=random) for _ in range(2)]
    features = RandomFeatures(torch.stack(photographs))
    spread = {}
    for norm in ("instance", "batch"):
        losses, pictures = measure_contrast(
            small_network(norm), features, torch.rand(3, 40, 40), photographs
        )
        assert len(losses) == len(pictures) == 3
        spread[norm] = max(losses) / min(losses) - 1
    assert spread["instance"] < 0.01
    assert spread["batch"] > 10 * spread["instance"]


def test_contrast_is_about_mid_grey():
    image = torch.tensor([0.0, 0.5, 1.0])
    assert change_contrast(image, 0.5).tolist() == [0.25, 0.5, 0.75]


def test_photographs_to_judge_by_are_not_trained_on(tmp_path):
    files = [str(tmp_path / f"{n}.png") for n in range(8)]
    for n, file in enumerate(files):
        Image.new("RGB", (30, 20), (20 * n, 0, 0)).save(file)
    for count, held_out in ((1, 1), (2, 1), (3, 1), (5, 2), (8, 3)):
        training, tests = hold_out(files[:count], 15)
        assert [round(photo[0].max().item() * 255 / 20) for photo in tests] == list(range(held_out))
        assert all(photo.shape == (3, 10, 15) for photo in tests)
        assert training == (files[held_out:count] or files[:1])


def test_others_take_the_place_of_a_photograph_that_is_damaged(run, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(pixels(40, 40, seed=index)).save(folder / f"{index}.png")
    (folder / "0.png").write_bytes(b"damaged")
    (folder / "3.png").write_bytes(b"damaged")
    training, tests = hold_out([str(file) for file in sorted(folder.iterdir())], 256)
    assert len(tests) == 2
    assert training == [str(folder / "3.png")]
    Image.fromarray(pixels(40, 40, seed=4)).save(folder / "4.png")
    outcome = run(
        *("compare", "-o", tmp_path / "found", "--content", folder, "--quick", "--steps", 4),
        *("--width", 4, "--blocks", 1, "--batch", 2, "--size", 32),
    )
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert [("0.png" in line, "3.png" in line) for line in lines] == [(True, False), (False, True)]


def test_smoothing_does_not_start_at_zero():
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)


def test_wrong_folder(fails, tmp_path):
    (tmp_path / "file").touch()
    fails("compare", "-o", tmp_path / "file", says="choose another place")
    fails("compare", says="-o")


def test_wrong_input_makes_no_folder(fails, tmp_path):
    out = tmp_path / "found"
    fails("compare", "-o", out, "--content", tmp_path / "no", says="no such folder")
    fails("compare", "-o", out, "--norm", "group", says="--norm")  # it is about two of them
    assert not out.exists()
