"""Command ``momentnorm study``: wrong input, stopping, the list."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from momentnorm.cli import main
from momentnorm.studies import STUDIES, command
from support.studies_cases import counted, rows_of


def test_stopping_from_the_command_line(monkeypatch, tmp_path, capsys):
    study, _ = counted(monkeypatch, STUDIES["depth"])

    def interrupted(settings, cell, layers, seed, folder):
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C: the cell is finished first
        return study.compute(settings, cell, layers, seed, folder)

    monkeypatch.setitem(STUDIES, "depth", dataclasses.replace(study, compute=interrupted))
    assert main(["study", "depth", "--quick", "--jobs", "1", "-o", str(tmp_path)]) == 130
    assert "continues" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "studies" / "depth.csv")) == 1


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_one_line(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from momentnorm.cli import main\n"
        "sys.exit(main(['study', '--list']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'momentnorm[studies]'" in result.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nonsense", "-o", "x"], list(STUDIES)),
        ([], ["--list"]),
        (["depth"], ["-o FOLDER"]),
        (["depth", "-o", "x", "--seeds", "0"], ["--seeds"]),
        (["switchable", "-o", "x", "--layers", "torch"], ["--layers momentnorm"]),
        (["--page", "-o", "x"], ["run a study first"]),
    ],
)
def test_wrong_input_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["study", *argv])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["study", "depth", "--quick", "-o", str(tmp_path / "file")]) == 2
    assert "choose another place" in capsys.readouterr().err


def test_list(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, study in zip(lines, STUDIES.values(), strict=True):
        assert line.split()[0] == study.name
        assert study.question in line
        assert f"full: {study.minutes[1]} min" in line
