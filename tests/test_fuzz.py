"""Fuzz targets: inputs that once failed, and files with seeded damage.

``python -m tests.fuzz --seconds N`` tries more of them.
"""

from __future__ import annotations

import itertools

import pytest

from fuzz.targets import CORPUS, TARGETS
from momentnorm.stylize import Trunk

#: Number of damaged files for each target, about one second of work.
CASES = {
    "style": 40,
    "trunk": 40,
    "checkpoint": 60,
    "image": 300,
    "npy": 300,
    "json": 300,
    "csv": 300,
    "study-csv": 150,
    "study-json": 150,
    "legacy": 150,
}

INPUTS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_inputs_that_failed_once(path, tmp_path, monkeypatch):
    _forbid_large_trunks(monkeypatch)
    TARGETS[path.parent.name].run(path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name, tmp_path, monkeypatch):
    _forbid_large_trunks(monkeypatch)
    target = TARGETS[name]
    for content in itertools.islice(target.cases(0, tmp_path), CASES[name]):
        target.run(content, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_files_without_damage_are_taken(name, tmp_path):
    """Undamaged seeds are accepted. Otherwise damage would test only the first check."""
    target = TARGETS[name]
    for content in target.seeds(tmp_path):
        path = tmp_path / f"whole{target.suffix}"
        path.write_bytes(content)
        target.use(path)


def _forbid_large_trunks(monkeypatch):
    """Fail where a small file leads to a large trunk in memory."""
    initialize = Trunk.__init__

    def small(self, shape):
        initialize(self, shape)
        memory = sum(p.nbytes for p in self.parameters() if p.device.type != "meta")
        assert memory < 100_000, "the network is larger than its file"

    monkeypatch.setattr(Trunk, "__init__", small)
