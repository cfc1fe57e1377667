"""Runner: stopped and killed runs continue, locks, several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from momentnorm.studies import STUDIES, StudyError, run
from support.studies_cases import TINY, counted, rows_of


def test_a_run_that_stops_goes_on_and_computes_nothing_twice(monkeypatch, tmp_path):
    study, computed = counted(monkeypatch, STUDIES["depth"])
    assert not run(study, tmp_path, seeds=[0, 1], should_stop=lambda: len(computed) == 5)
    assert len(rows_of(tmp_path / "depth.csv")) == 5
    assert run(study, tmp_path, seeds=[0, 1])
    assert len(computed) == len(set(computed)) == 2 * len(study.cells(study.quick, "momentnorm"))
    # Cells of another seed and of other layers are added.
    before = len(computed)
    assert run(study, tmp_path, seeds=[0, 1, 2])
    assert run(study, tmp_path, seeds=[0], layers="torch")
    assert {cell[-2:] for cell in computed[before:]} == {("momentnorm", 2), ("torch", 0)}
    assert len(computed) == len(set(computed)) == len(rows_of(tmp_path / "depth.csv"))


def test_a_run_that_is_killed_keeps_what_is_finished(monkeypatch, tmp_path):
    study, computed = counted(monkeypatch, STUDIES["depth"])

    def break_down(settings, cell, layers, seed, folder):
        if len(computed) == 3:
            raise KeyboardInterrupt
        return study.compute(settings, cell, layers, seed, folder)

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(study, compute=break_down), tmp_path)
    assert run(study, tmp_path)
    assert len(computed) == len(set(computed)) == len(rows_of(tmp_path / "depth.csv"))


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked on Windows")
def test_two_runs_into_one_folder_lose_no_rows(monkeypatch, tmp_path):
    """A second run is refused while one runs. Other studies and other folders are not."""
    study, computed = counted(monkeypatch, STUDIES["depth"])
    other, _ = counted(monkeypatch, STUDIES["batch-size"])
    met = []

    def compute(*arguments):
        if not met:
            with pytest.raises(StudyError) as error:
                run(study, tmp_path, seeds=[7])
            met.append(str(error.value))
            assert run(other, tmp_path, seeds=[0])
            assert run(study, tmp_path / "another", seeds=[0])
            computed.clear()
        return study.compute(*arguments)

    assert run(dataclasses.replace(study, compute=compute), tmp_path, seeds=[0])
    assert "another run of depth is writing into it; wait" in met[0]
    assert len(rows_of(tmp_path / "depth.csv")) == len(computed)
    assert not list(tmp_path.glob(".*")), "the lock is gone"
    assert run(study, tmp_path, seeds=[0, 7])


def test_several_processes_write_the_same_rows_in_the_same_order(tmp_path):
    study = dataclasses.replace(STUDIES["depth"], quick=TINY["depth"])
    for jobs in (1, 2):
        assert run(study, tmp_path / str(jobs), seeds=[0, 1], layers="both", jobs=jobs)
    one, two = (rows_of(tmp_path / str(jobs) / "depth.csv") for jobs in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def end_abruptly(settings, cell, layers, seed, folder):
    if cell["norm"] == "batch":
        os.kill(os.getpid(), signal.SIGKILL)  # as a system that runs out of memory does
    return {"loss": 1.0, "accuracy": 0.5}


def test_a_process_that_is_ended_from_outside_is_one_line(tmp_path):
    study = dataclasses.replace(STUDIES["depth"], quick=TINY["depth"], compute=end_abruptly)
    with pytest.raises(StudyError, match="fewer --jobs"):
        run(study, tmp_path, seeds=[0], jobs=2)
    assert 0 < len(rows_of(tmp_path / "depth.csv")) < len(study.cells(study.quick, "momentnorm"))


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C and kill are POSIX signals here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number, tmp_path):
    program = "import sys; from momentnorm.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", program]
    argv += ["study", "depth", "--quick", "--jobs", "2", "-o", str(tmp_path)]
    options = {"start_new_session": True, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **options) as running:
        assert running.stderr.readline().startswith("momentnorm study: 1/63 ")
        try:
            if number == signal.SIGINT:
                os.killpg(running.pid, number)  # Ctrl-C is for all of them
            else:
                running.kill()
            _, rest = running.communicate(timeout=120)  # ends when the last process has
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    assert ("continues" in rest) == (number == signal.SIGINT)
    assert "Traceback" not in rest
    assert 0 < len(rows_of(tmp_path / "studies" / "depth.csv")) < 63
