"""The command line's outer layer: which command, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import momentnorm
from momentnorm.cli import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"]])
def test_unknown_commands(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "momentnorm" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert name in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"momentnorm {momentnorm.__version__}"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_as_a_module():
    result = python("-m", "momentnorm", "--version")
    assert (result.returncode, result.stdout) == (0, f"momentnorm {momentnorm.__version__}\n")


def test_the_library_imports_no_application():
    code = (
        "import sys, momentnorm\n"
        "print(*(m for m in sys.modules if 'stylize' in m or 'studies' in m or m == 'PIL'))"
    )
    assert python("-c", code).stdout.strip() == ""


def test_a_reader_that_leaves_is_no_error():
    pytest.importorskip("rich")
    process = subprocess.Popen(
        [sys.executable, "-m", "momentnorm", "stylize", "--list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize("missing", ["PIL", "safetensors", "rich"])
def test_a_missing_extra_is_one_line(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from momentnorm.cli import main\n"
        "sys.exit(main(['stylize', '--list']))"
    )
    result = python("-c", code)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'momentnorm[stylize]'" in result.stderr
