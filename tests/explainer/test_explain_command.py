"""Command ``momentnorm explain``: options, inputs, files and errors of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from momentnorm.cli import main
from momentnorm.explainer import ExplainError, explain, files, names
from momentnorm.explainer.example import PRINTED, X


def run(capsys, *argv):
    code = main(["explain", *map(str, argv)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_example_is_the_published_one(capsys):
    code, out, _ = run(capsys, "instance", "--example")
    assert code == 0
    assert out.count("is the published one") == len(PRINTED)
    assert "first: (1 + 6 + 9 + 4) / 4 = 5" in out


def test_the_example_equals_that_of_the_tests():
    from pathlib import Path

    path = Path(__file__).parents[1] / "data/published_examples.json"
    (example,) = (e for e in json.loads(path.read_text())["examples"] if "mean" in e)
    assert example["input"] == X
    assert example["expected"] == PRINTED["x_hat"][0]
    for name in ("mean", "var", "std"):
        assert example[name] == PRINTED[name][0]


@pytest.mark.parametrize("name", names())
def test_every_name(name, capsys):
    code, out, _ = run(capsys, name, "--example", "--backward", "one", "--precision", 2)
    assert code == 0
    # instance ends with checks against the published numbers
    assert out.startswith(explain(name, torch.tensor(X), gradient="one").text(precision=2))


def test_options(capsys):
    code, out, _ = run(
        capsys, "group", "--example", "--groups", 1, "--eps", 0.5, "--weight", "2,3", "--bias",
        "-1", "--activation", "relu", "--steps", "mean, std,y",
    )  # fmt: skip
    assert code == 0
    expected = explain(
        "group", X, num_groups=1, eps=0.5, weight=[2, 3], bias=-1, activation="relu"
    ).only("mean", "std", "y")
    assert out == expected.text()


def test_evaluation_and_further_settings(capsys):
    code, out, _ = run(
        capsys, "batch", "--example", "--eval", "--set", "running_mean=5,14", "--set",
        "running_var=9,4",
    )  # fmt: skip
    assert code == 0
    assert "the running statistics do not move" in out
    assert "first: -4 / 3.0000 = -1.3333" in out
    code, out, _ = run(capsys, "switchable", "--example", "--set", "using_bn=false")
    assert code == 0
    assert "bn_mean" not in out


@pytest.mark.parametrize("kind", ["npy", "json", "csv", "png", "gray.png"])
def test_inputs(kind, capsys, tmp_path):
    path = tmp_path / f"input.{kind}"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    if kind == "npy":
        np.save(path, x)
    elif kind == "json":
        path.write_text(json.dumps(x.tolist()))
    elif kind == "csv":
        x = x[:1, :1]
        path.write_text("\n".join(",".join(map(str, row)) for row in x[0, 0].tolist()) + "\n")
    else:
        image = pytest.importorskip("PIL.Image")
        pixels = rng.integers(0, 256, (4, 5) if kind == "gray.png" else (4, 5, 3), dtype="uint8")
        image.fromarray(pixels).save(path)
        x = np.atleast_3d(pixels).transpose(2, 0, 1)[None].astype("float32") / 255
    code, out, _ = run(capsys, "instance", "--input", path, "--precision", 6)
    assert code == 0
    assert out == explain("instance", torch.from_numpy(x)).text(precision=6)


def test_grey_of_16_bits_is_not_clipped(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.array([[0, 255, 256], [32768, 40000, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        image.fromarray(pixels).save(tmp_path / name)
        expected = torch.from_numpy((pixels / 65535).astype("float32"))[None, None]
        assert torch.equal(files.read(tmp_path / name), expected)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_images_without_a_range_are_refused(dtype, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.tif"
    image.fromarray(np.array([[0, 300]], dtype=dtype)).save(path)
    with pytest.raises(ExplainError, match=r"no agreed range of values; save the numbers as \.npy"):
        files.read(path)


def test_a_photograph_is_upright(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    turned = image.Exif()
    turned[0x0112] = 6  # the top of the photograph is on the right
    pixels = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    image.fromarray(pixels).save(path, exif=turned)
    expected = torch.tensor([[153, 0], [204, 51], [255, 102]]) / 255
    assert torch.equal(files.read(path), expected[None, None])


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_byte_order_mark_is_skipped(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_text("1,2\n3,4\n" if kind == "csv" else "[[[[1, 2], [3, 4]]]]", "utf-8-sig")
    assert files.read(path).tolist() == [[[[1, 2], [3, 4]]]]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.npy", b"", "not read as a .npy file"),
        ("empty.png", b"", "not an image that can be read"),
        ("half.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "damaged or truncated"),
        ("deep.json", b"[" * 100_000, "not read as a .json file"),
        ("words.csv", b"a,b\n", "not read as a .csv file"),
        ("bytes.csv", b"\xff\xfe1", "not read as a .csv file"),
        ("zeros.csv", b"1,\0" * 2, "not read as a .csv file"),
        ("huge.json", b"[[" + b"9" * 400 + b"]]", "not read as a .json file"),
        ("folder.png", None, "is a folder"),
        ("folder.csv", None, "is a folder"),
        ("n" * 300 + ".csv", ..., "File name too long"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_a_damaged_input_is_one_line(name, content, says, tmp_path, capsys):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content is not ...:
        path.write_bytes(content)
    code, out, error = run(capsys, "instance", "--input", path)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert says in error


def test_an_image_of_another_format_starts_no_program(tmp_path, capsys, monkeypatch):
    """Pillow would give an EPS to Ghostscript, whatever the file's name."""
    plugin = pytest.importorskip("PIL.EpsImagePlugin")
    started = []

    def started_instead(*arguments, **options):
        started.append(arguments)
        return pytest.importorskip("PIL.Image").new("RGB", (10, 10)).im

    monkeypatch.setattr(plugin, "Ghostscript", started_instead)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"
    )
    code, out, error = run(capsys, "instance", "--input", path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "not an image that can be read" in error
    assert not started


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("suffix", ["png", "npy", "json", "csv"])
def test_a_fifo_is_one_line(suffix, tmp_path, capsys):
    path = tmp_path / f"fifo.{suffix}"
    os.mkfifo(path)
    for argv in (["--input", path], ["--example", "--backward", path]):
        code, out, error = run(capsys, "instance", *argv)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert "not a regular file" in error


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_files_are_escaped(tmp_path, capsys):
    name, escaped = "a\x1b[31m\n", r"a\x1b[31m\n"
    for argv in (["--input", tmp_path / f"{name}.npy"], ["--input", tmp_path / name]):
        code, _, error = run(capsys, "instance", *argv)
        assert (code, error.count("\n")) == (2, 1)
        assert escaped in error
    out = tmp_path / f"{name}.txt"
    assert run(capsys, "instance", "--example", "-o", out)[1] == f"{tmp_path}/{escaped}.txt\n"


def test_an_enormous_image_is_one_line(tmp_path, capsys, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    image.new("1", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 199)
    code, _, error = run(capsys, "instance", "--input", tmp_path / "a.png")
    assert (code, error.count("\n")) == (2, 1)
    assert "scale it down first" in error
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 201)  # for which Pillow warns
    assert files.read(tmp_path / "a.png").shape == (1, 1, 20, 20)


def test_dtypes_and_integers(capsys, tmp_path):
    path = tmp_path / "input.npy"
    np.save(path, np.arange(12).reshape(1, 2, 6))
    code, out, _ = run(capsys, "instance", "--input", path, "--dtype", "bfloat16")
    assert code == 0
    assert "rounded once to bfloat16" in out
    assert "rounded once to float32" in run(capsys, "instance", "--input", path)[1]


def test_a_gradient_from_a_file(capsys, tmp_path):
    gradient = torch.randn(2, 2, 2, 2)
    path = tmp_path / "gradient.json"
    path.write_text(json.dumps(gradient.tolist()))
    code, out, _ = run(capsys, "batch", "--example", "--backward", path)
    assert code == 0
    assert out == explain("batch", X, gradient=gradient).text()


def test_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"steps.{suffix}" for suffix in ("txt", "md", "html", "json", "svg", "png")]
    argv = [word for path in paths for word in ("-o", path)]
    code, out, _ = run(capsys, "instance", "--example", *argv)
    assert code == 0
    assert out.split() == list(map(str, paths))
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["instanse", "--example"], "did you mean 'instance'"),
        (["instance", "--input", "none.npy"], "no such file"),
        (["instance", "--input", "x.mp3"], "an input is one of .npy, .json"),
        (["instance", "--example", "-o", "x.pdf"], "choose one of .txt"),
        (["instance", "--example", "-o", "nowhere/x.txt"], "does not exist"),
        (["group", "--example", "--groups", "5"], "choose one of 1, 2"),
        (["instance", "--example", "--precision", "99"], "choose 0 to 16"),
        (["instance", "--example", "--set", "momentum"], "NAME=VALUE"),
        (["instance", "--example", "--set", "nonsense=1"], "has no option 'nonsense'"),
        (["instance", "--example", "--weight", "1;2"], "write a number"),
        (["instance", "--example", "--activation", "sine"], "unknown activation"),
        (["instance", "--example", "--steps", "middle"], "no step is named 'middle'"),
        (["instance", "--input", "bad.json"], "not read as a .json file of numbers"),
        (["instance", "--input", "flat.json"], "(N, C, *S)"),
        (["instance", "--input", "single.json"], "more than 1 spatial element"),
    ],
)
def test_wrong_input_is_one_line(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("[[1, 2], [3]]")
    (tmp_path / "flat.json").write_text("[1, 2]")
    (tmp_path / "single.json").write_text("[[[[1]]]]")
    code, out, error = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert says in error


@pytest.mark.parametrize("argv", [[], ["instance"], ["instance", "--example", "--nonsense"]])
def test_missing_options_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", *argv])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "argv"),
    [
        ("matplotlib", ["instance", "--example", "-o", "a.png"]),
        ("numpy", ["instance", "--input", "x.npy"]),
        ("PIL", ["instance", "--input", "x.png"]),
    ],
)
def test_a_missing_extra_is_one_line(missing, argv, tmp_path):
    (tmp_path / "x.npy").touch()
    (tmp_path / "x.png").touch()
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from momentnorm.cli import main\n"
        f"sys.exit(main(['explain', *{argv!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    # torch itself warns where numpy is missing
    assert "pip install 'momentnorm[explain]'" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_text_needs_no_extra(tmp_path):
    code = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'PIL', 'numpy'): sys.modules[name] = None\n"
        "from momentnorm.cli import main\n"
        "sys.exit(main(['explain', 'batch', '--example', '--backward', '-o', 'a.html']))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "a.html\n"), result.stderr
