"""Commands: runs of the command line in this process."""

from __future__ import annotations

from momentnorm.cli import main


def refusal(argv, capsys):
    """Error line of a command that ends with code 2 and prints nothing else."""
    try:
        code = main(list(argv))
    except SystemExit as stop:  # errors of the argument parser
        code = stop.code
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    return error
