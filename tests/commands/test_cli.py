"""Command line: choice of the command, imports, streams that are closed or full."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

import momentnorm
from momentnorm.cli import COMMANDS, main
from momentnorm.doctor import command

full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"]])
def test_unknown_commands(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "(see momentnorm --help)" in error


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
    assert result.stderr.startswith("momentnorm stylize: error: ")
    assert "pip install 'momentnorm[stylize]'" in result.stderr


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``momentnorm`` as a shell does, with its redirections."""
    command = f"exec {shlex.quote(sys.executable)} -m momentnorm {line}"
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("figure -o {}/a.svg >&-", 0),
        ("explain instance --example >&-", 0),
        ("explain nonsense --example 2>&-", 2),
    ],
)
def test_closed_streams_take_everything(line, code, tmp_path):
    result = shell(line.format(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["a.svg"] * line.startswith("figure")


@full_disk
@pytest.mark.parametrize(
    ("line", "unbuffered"),
    # argparse ignores errors of its output, so --version fails only when main flushes
    [("doctor", ""), ("doctor", "1"), ("--version", "")],
)
def test_a_full_disk_is_one_line(line, unbuffered):
    result = shell(f"{line} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 2
    error = "momentnorm: error: the output cannot be written (No space left on device)"
    assert result.stderr == f"{error}; free space\n"


def test_letters_that_the_terminal_lacks():
    result = shell("explain instance --example", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "?" in result.stdout
    assert result.stdout.isascii()


def test_ctrl_c_is_no_error(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")
