"""Command ``momentnorm export-check``."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from momentnorm.cli import main
from support.onnx_files import exported

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))

def pair():
    return make(), torch.randn(1, 3, 9, 9)

number = 3
"""


def command(capsys, *arguments):
    try:
        code = main(["export-check", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    return code, out, error


def test_the_command(tmp_path, capsys):
    net, right, wrong = tmp_path / "net.py", tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    net.write_text(NET)
    names = {}
    exec(NET, names)
    model = names["make"]().eval()
    free = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
    right.write_bytes(exported(model, torch.randn(1, 3, 8, 8)))
    wrong.write_bytes(exported(model[:1], torch.randn(1, 3, 8, 8), **free))

    agrees = "1 normalization layer, the file agrees\n"
    assert command(capsys, right, "--model", f"{net}:make") == (0, agrees, "")
    code, out, _ = command(capsys, wrong, "--model", f"{net}:pair", "--table")
    assert code == 1
    assert "export [missing] 1: no tensor" in out
    assert "layer  operator (opset" in out
    for arguments, message in (
        ([wrong, "--model", f"{net}:make"], "takes several shapes: choose one by --shape"),
        ([right, "--model", f"{net}:other"], "has no other: check the name"),
        ([right, "--model", f"{net}:number"], "it should be a torch.nn.Module"),
        ([right, "--model", "make"], "write it as net.py:make"),
        ([right, "--model", "missing.py:make"], "there is no file missing.py"),
        ([right, "--model", "no.such:make"], "no.such cannot be imported"),
        ([right, "--model", f"{net}:make", "--shape", "1,x"], "write it as 1,3,64,64"),
        ([net, "--model", f"{net}:make"], "not an ONNX file"),
        ([tmp_path / "no.onnx", "--model", f"{net}:make"], "No such file"),
        ([right], "the following arguments are required: --model"),
    ):
        code, out, error = command(capsys, *arguments)
        assert (code, out) == (2, "")
        assert error.count("\n") == 1
        assert message in error
