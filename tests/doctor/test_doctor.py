"""Doctor: installed versions, and the backend that takes a call."""

from __future__ import annotations

import pytest
import torch

import momentnorm
from momentnorm.cli import main
from momentnorm.core.backends import cpu, native
from momentnorm.doctor import command


def test_installation(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in (momentnorm.__version__, torch.__version__, cpu.instruction_set() or "not built"):
        assert fact in out
    assert f"threads     {torch.get_num_threads()}" in out
    assert "8,128,64,64 float32 contiguous" in out


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
def test_a_call_goes_where_doctor_says():
    assert command.call("2,3,4,4", "float32", "contiguous").endswith("-> cpu: takes this call")
    strided = command.call("2,3,4,4", "float32", "strided")
    assert strided.endswith("-> cpu: takes this call, after a copy into a layout that kernels read")


def test_without_kernels(monkeypatch, capsys):
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "_unavailable", "the kernels were not built: reinstall")
    assert main(["doctor"]) == 0
    assert "cpu         the kernels were not built: reinstall" in capsys.readouterr().out
    assert main(["doctor", "--shape", "2,3,4"]) == 0
    assert "-> reference: cpu: the kernels were not built" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["1,2", "a,b,c", "2,3,-4", ""])
def test_a_bad_shape_is_one_line(shape, capsys):
    assert main(["doctor", f"--shape={shape}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "write at least three sizes, such as 8,128,64,64" in err


@pytest.mark.parametrize(
    "argv", [["--shape", "2,3,4", "--device", "nowhere"], ["--shape", f"1,1,{2**64}"]]
)
def test_what_torch_refuses_is_one_line(argv, capsys):
    assert main(["doctor", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [["--device", "cpu"], ["--dtype", "float32"], ["--memory-format", "strided"]]
)
def test_what_is_of_one_input_needs_its_shape(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *argv])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"momentnorm doctor: error: {argv[0]} describes an input: give its --shape too"
    )
    assert err.count("\n") == 1
