"""Files that commands write: a failed write leaves the old file, other files stay."""

from __future__ import annotations

import os

import pytest

from momentnorm.cli import main
from momentnorm.support import files

DEPTH = ["study", "depth", "--activations", "--norms", "none", "--depth", "2", "--steps", "1"]

#: Arguments of each command, and the suffixes of the files that it writes.
WRITERS = {
    "explain": (["explain", "instance", "--example"], "txt md html json svg png"),
    "depth": (DEPTH, "txt csv json html svg png gif"),
    "figure": (["figure"], "svg"),
    "explore": (["explore"], "html"),
}
COMMANDS = {name: (argv, kinds.split()[0]) for name, (argv, kinds) in WRITERS.items()}

each_kind = pytest.mark.parametrize(
    ("argv", "kind"),
    [
        pytest.param(argv, kind, id=f"{name} {kind}")
        for name, (argv, kinds) in WRITERS.items()
        for kind in kinds.split()
    ],
)
each_command = pytest.mark.parametrize(("argv", "kind"), COMMANDS.values(), ids=COMMANDS)


def refusal(argv, path, capsys):
    """Error line of a command that writes no file."""
    try:
        code = main([*argv, "-o", str(path)])
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    return error


@each_kind
def test_a_failed_write_leaves_the_old_file(argv, kind, tmp_path, monkeypatch, capsys):
    if kind in ("svg", "png") and argv[0] == "explain":
        pytest.importorskip("matplotlib")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"old")

    def full(source, target):
        assert os.path.getsize(source) > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    error = refusal(argv, path, capsys)
    assert f"{path}: cannot be written (No space left on device); choose another place" in error
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@each_command
def test_a_folder_of_that_name(argv, kind, tmp_path, capsys):
    path = tmp_path / f"a.{kind}"
    path.mkdir()
    assert f"{path}: this is a folder" in refusal(argv, path, capsys)


@each_command
def test_a_folder_that_is_not_there(argv, kind, tmp_path, capsys):
    path = tmp_path / "nowhere" / f"a.{kind}"
    assert "does not exist: create it first" in refusal(argv, path, capsys)


@each_command
def test_a_folder_that_takes_no_files(argv, kind, capsys):
    if not os.path.isdir("/proc"):
        pytest.skip("there is no /proc")
    assert "cannot be written" in refusal(argv, f"/proc/a.{kind}", capsys)


@each_command
def test_no_other_kind_of_file_is_written_over(argv, kind, tmp_path, capsys):
    path = tmp_path / "notes.rst"
    path.write_text("mine")
    assert f".{kind}" in refusal(argv, path, capsys)
    assert path.read_text() == "mine"
