"""Activations of a deep network: the measurements, the files, the command."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from PIL import Image

from momentnorm.cli import main
from momentnorm.studies import StudyError
from momentnorm.studies.activations import measure as measurement
from momentnorm.studies.activations.export import table
from momentnorm.studies.activations.measure import (
    MEASURES,
    NORMS,
    Course,
    Settings,
    add_measures,
    measure,
    stripes,
)

COMMAND = ["study", "depth", "--activations"]
SMALL = {"depth": 6, "channels": 4, "size": 6, "batch": 8, "steps": 3}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def found():
    return measure(settings=Settings(**SMALL))


def test_what_is_measured():
    units = [[1.0, 0.0, 0.0], [3.0, 0.0, 2.0]]  # alive, dead, and 0 for one image alone
    first = torch.tensor(units, dtype=torch.float64)[..., None, None].requires_grad_()
    (first * torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1)).sum().backward()
    course = Course("none", "")
    add_measures(course, [first])
    assert course.mean == [[1.0]]
    assert course.var == [[pytest.approx(2 / 3)]]  # units with variances 1, 0 and 1
    assert course.dead == [[pytest.approx(1 / 3)]]
    assert course.gradient == [[pytest.approx(math.sqrt(50 / 3))]]


def test_every_norm_starts_from_the_same_network(found):
    assert [course.norm for course in found.courses] == list(NORMS)
    for course in found.courses:
        assert len(course.loss) == SMALL["steps"] + 1
        for name in MEASURES:
            rows = getattr(course, name)
            assert (len(rows), len(rows[0])) == (SMALL["steps"] + 1, SMALL["depth"])


def test_a_seed_is_a_study(found):
    assert measure(settings=Settings(**SMALL)).to_dict() == found.to_dict()
    assert measure(settings=Settings(**SMALL, seed=1)).courses != found.courses


def test_the_random_numbers_outside_go_on():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    measure(["none"], Settings(**SMALL))
    assert torch.equal(torch.randn(2), expected)


def test_without_a_norm_the_images_become_one():
    for course in measure(settings=Settings(depth=20, steps=0)).courses:
        shrunk = course.var[0][-1] / course.var[0][0]
        assert (shrunk < 1e-12) == (course.norm == "none")
        assert (course.gradient[0][0] < 1e-9) == (course.norm == "none")


def test_norms_learn():
    courses = measure(["none", "batch", "group"]).courses
    by_norm = {course.norm: course.loss for course in courses}
    assert by_norm["none"][-1] > math.log(4)
    assert by_norm["batch"][-1] < 1.1
    assert by_norm["group"][-1] < 1.3


def test_the_stripes_are_balanced():
    torch.manual_seed(0)
    images, direction = stripes(16, 12)
    assert images.shape == (16, 1, 12, 12)
    assert direction.bincount().tolist() == [4, 4, 4, 4]


def test_a_network_that_explodes_is_none_in_json():
    found = measure(["none"], Settings(**SMALL, gain=1e80))
    assert None in found.to_dict()["courses"][0]["gradient"][0]
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("depth", 0, "at least 1"),
        ("channels", 6, "a multiple of 4"),
        ("batch", 1, "at least 4"),
        ("steps", -1, "at least 0"),
        ("gain", math.nan, "a finite number"),
        ("gain", 1e400, "a finite number"),
        ("rate", math.inf, "a finite number from 0 up"),
        ("rate", -0.1, "a finite number from 0 up"),
        ("seed", -1, "from 0 to"),
        ("seed", 2**63, "from 0 to"),
        ("size", 100_000_000, "MB of memory are needed: choose a smaller size"),
        ("batch", 10**400, "MB of memory are needed: choose a smaller size"),
    ],
)
def test_wrong_settings_are_one_line(option, value, says, monkeypatch, capsys):
    monkeypatch.setattr(measurement, "available_memory", lambda: 2**34)
    assert main([*COMMAND, f"--{option}={value}"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert option in error
    assert says in error


def test_no_memory_is_one_line(monkeypatch):
    def exhausted(count, size):
        return torch.empty(2**60)

    monkeypatch.setattr(measurement, "stripes", exhausted)
    with pytest.raises(StudyError, match="not enough memory: choose a smaller size"):
        measure(["none"], Settings(**SMALL))


def test_the_table(found):
    text = table(found)
    for title in NORMS.values():
        assert text.count(f"\n{title}") == 1 + len(MEASURES)
    assert "layer 1   layer 4   layer 6" in text


def test_files(tmp_path, capsys):
    paths = {suffix: tmp_path / f"d.{suffix}" for suffix in ("png", "svg", "gif", "html", "csv")}
    argv = [word for path in paths.values() for word in ("-o", str(path))]
    assert main([*COMMAND, *SMALL_OPTIONS, "--norms", "none,batch", *argv]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in paths.values()]
    with Image.open(paths["gif"]) as gif:
        assert gif.n_frames == SMALL["steps"] + 1
        first = gif.convert("RGB").tobytes()
        gif.seek(gif.n_frames - 1)
        assert gif.convert("RGB").tobytes() != first
    with Image.open(paths["png"]) as png:
        assert png.height > png.width > 600
    rows = list(csv.DictReader(paths["csv"].read_text().splitlines()))
    assert len(rows) == 2 * (SMALL["steps"] + 1) * SMALL["depth"]
    page = paths["html"].read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    _, _, rest = page.partition('id="numbers">')
    numbers = json.loads(rest.partition("</script>")[0])
    assert [course["norm"] for course in numbers["courses"]] == ["none", "batch"]
    assert numbers["measures"] == MEASURES


def test_the_command_prints_the_table(found, capsys):
    assert main([*COMMAND, *SMALL_OPTIONS]) == 0
    assert capsys.readouterr().out == table(found)


@pytest.mark.parametrize("study", [["batch-size"], []])
def test_only_depth_has_activations(study, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", *study, "--activations"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("momentnorm study depth --activations: error: ")
    assert error.count("\n") == 1
