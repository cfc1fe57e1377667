"""A run that stops, for whatever reason, goes on to the same bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from momentnorm.tiles import TilesError, tiled


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.InstanceNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.GroupNorm(1, 3),
        nn.Conv2d(3, 1, 3, padding=1),
    ).eval()


IMAGE = np.random.default_rng(0).normal(size=(1, 40, 36)).astype(np.float32)


class Array:
    """An array that counts accesses and fails at one of them."""

    def __init__(self, data, failure=None, at=None):
        self.data, self.failure, self.at, self.count = data, failure, at, 0
        self.shape, self.dtype = data.shape, data.dtype

    def _access(self):
        self.count += 1
        if self.count == self.at:
            raise self.failure

    def __getitem__(self, key):
        self._access()
        return self.data[key]


class Sink(Array):
    def __getitem__(self, key):
        return self.data[key]

    def __setitem__(self, key, value):
        self._access()
        self.data[key] = value


@pytest.fixture(scope="module")
def straight():
    """The output of an undisturbed run, and how often it reads the image."""
    source, sink = Array(IMAGE), Sink(np.zeros_like(IMAGE))
    tiled(network(), tile=16, store=True)(source, sink)
    return sink.data, source.count


def resumed(folder, source=None, sink=None):
    """Goes on in a folder; returns the output and how many tiles were done."""
    sink = Sink(np.zeros_like(IMAGE)) if sink is None else sink
    calls = []
    run = tiled(network(), tile=16, store=True)
    run(
        IMAGE if source is None else source,
        sink,
        resume=folder,
        progress=lambda *n: calls.append(n),
    )
    return sink.data, len(calls)


# Three passes of nine tiles; the first reads the image, and three pieces of it are compared before.
@pytest.mark.parametrize("at", [1, 8, 12])
def test_stopped_while_the_image_is_read(tmp_path, straight, at):
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, Array(IMAGE, KeyboardInterrupt(), at))
    output, tiles = resumed(tmp_path)
    np.testing.assert_array_equal(output, straight[0])
    assert tiles == 27 - max(0, at - 4)


def test_stopped_while_the_output_is_written(tmp_path, straight):
    sink = Sink(np.zeros_like(IMAGE), KeyboardInterrupt(), 5)
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, sink=sink)
    output, tiles = resumed(tmp_path, sink=sink)
    np.testing.assert_array_equal(output, straight[0])
    assert tiles == 5
    assert resumed(tmp_path, sink=sink)[1] == 0  # it is done
    assert not list(tmp_path.glob("*.map"))


@pytest.mark.parametrize("bytes_lost", [1, 1000])
def test_a_ledger_that_is_cut_off(tmp_path, straight, bytes_lost):
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, sink=Sink(np.zeros_like(IMAGE), KeyboardInterrupt(), 1))
    ledger = tmp_path / "ledger.jsonl"
    os.truncate(ledger, ledger.stat().st_size - bytes_lost)
    output, tiles = resumed(tmp_path)
    np.testing.assert_array_equal(output, straight[0])
    assert tiles > 9


def test_stored_maps_that_are_damaged_are_computed_again(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, sink=Sink(np.zeros_like(IMAGE), KeyboardInterrupt(), 1))
    (path,) = tmp_path.glob("*.map")  # the second convolution's, which the last pass reads
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"damage")
    output, tiles = resumed(tmp_path)
    np.testing.assert_array_equal(output, straight[0])
    # Its tile again, and for that the first map, which was removed, wholly: 9 + 1 + 9.
    assert tiles == 19


def test_output_that_is_damaged_is_written_again(tmp_path, straight):
    sink = Sink(np.zeros_like(IMAGE))
    resumed(tmp_path, sink=sink)
    sink.data[0, 20, 20] = 99
    output, _ = resumed(tmp_path, sink=sink)
    np.testing.assert_array_equal(output, straight[0])


def test_a_process_that_is_killed(tmp_path, straight):
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np
        import torch
        from test_tiles_resume import IMAGE, network
        from momentnorm.tiles import tiled

        torch.set_num_threads(1)

        def progress(done, total):
            if done == 22:
                os.kill(os.getpid(), signal.SIGKILL)

        folder = {str(tmp_path)!r}
        run = tiled(network(), tile=16, store=True)
        run(IMAGE, folder + "/out.npy", resume=folder + "/run", progress=progress)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    path = tmp_path / "out.npy"
    done = []
    run = tiled(network(), tile=16, store=True)
    assert run(IMAGE, path, resume=tmp_path / "run", progress=lambda *n: done.append(n)) == path
    assert len(done) == 27 - 22
    np.testing.assert_array_equal(np.load(path)[0], straight[0])


@pytest.mark.parametrize("what", ["weights", "tile", "source", "schedule"])
def test_another_run_is_refused(tmp_path, what):
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, Array(IMAGE, KeyboardInterrupt(), 6))
    model = network()
    if what == "weights":
        model[0].bias.data += 1
    run = tiled(model, tile=17 if what == "tile" else 16, store=what != "schedule")
    with pytest.raises(TilesError, match=rf"a run that differs in {what}: choose another folder"):
        run(IMAGE + 1 if what == "source" else IMAGE, resume=tmp_path)


def test_a_folder_that_is_in_use(tmp_path):
    with open(tmp_path / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TilesError, match="another process is at work"):
            resumed(tmp_path)
    resumed(tmp_path)


def test_a_full_disk_where_maps_are_kept(tmp_path, straight):
    """The operating system refuses files of more than 2000 bytes: a map has 17 280."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(TilesError, match=r"File too large\. What is done is kept in") as error:
            resumed(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(resumed(tmp_path)[0], straight[0])


def test_a_full_disk_where_the_output_is_written(tmp_path, straight):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sink = Sink(np.zeros_like(IMAGE), full, 3)
    with pytest.raises(TilesError, match=r"cannot write \[0:16, 32:36\] of .* No space left"):
        resumed(tmp_path, sink=sink)
    output, tiles = resumed(tmp_path, sink=sink)
    np.testing.assert_array_equal(output, straight[0])
    assert tiles == 7


def test_a_source_that_fails(tmp_path, straight):
    source = Array(IMAGE, OSError(errno.EIO, os.strerror(errno.EIO)), 6)
    with pytest.raises(TilesError, match=r"cannot read \[0:17, 31:36\] .* kept in .*: the same"):
        resumed(tmp_path, source)
    np.testing.assert_array_equal(resumed(tmp_path)[0], straight[0])
