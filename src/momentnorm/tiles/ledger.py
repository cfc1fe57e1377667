"""The ledger of a run: which tiles of which pass are done, with the moments that they gave.

It is a text file to which one line is added for each tile, after the tile's data is written. A line
starts with its checksum, so a line that was cut off by a kill is known and dropped.
"""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..moments import Moments
from .errors import TilesError

NAME = "ledger.jsonl"
VERSION = 1


@dataclass
class Unit:
    """Results of one tile in one pass."""

    moments: list[Moments | None] = field(default_factory=list)  # in the order of Pass.measured
    stored: list[int | None] = field(default_factory=list)  # checksums, in the order of Pass.stored
    output: int | None = None  # checksum of what was written to the sink


class Ledger:
    """Units that are done, in memory and, with a folder, on disk."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        self.units: dict[tuple[int, int], Unit] = {}
        self._sink: str | None = None
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self._open(folder / NAME, key)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, key: dict[str, Any]) -> None:
        whole = self._load(path, key) if path.exists() else 0
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        self._file.truncate(whole)
        if whole == 0:
            self._append({"version": VERSION, "key": key})

    def _load(self, path: Path, key: dict[str, Any]) -> int:
        """Reads what is whole, and returns its length in bytes."""
        whole = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                entry = _checked(line)
                if entry is None:
                    break
                if number == 0:
                    _compare(path.parent, entry, key)
                elif "sink" in entry:
                    self._sink = entry["sink"]
                else:
                    self.units[entry["pass"], entry["tile"]] = _unit(entry)
                whole += len(line)
        return whole

    def claim(self, path: Path) -> None:
        """Notes the file that the output is written to.

        Raises:
            TilesError: the file exists, and this run has not made it.
        """
        if self._sink == str(path):
            return
        if path.exists():
            raise TilesError(f"{path} exists: remove it or choose another name")
        self._sink = str(path)
        if self._file is not None:
            self._append({"sink": self._sink})

    def add(self, number: int, tile: int, unit: Unit) -> None:
        """Notes that a tile of a pass is done."""
        self.units[number, tile] = unit
        if self._file is not None:
            moments = [None if one is None else _packed(one) for one in unit.moments]
            entry = {"pass": number, "tile": tile, "moments": moments}
            self._append(entry | {"stored": unit.stored, "output": unit.output})

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(entry, separators=(",", ":")).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()

    def close(self) -> None:
        """Closes the file and lets others use the folder."""
        for file in (self._file, self._lock):
            if file is not None:
                with suppress(OSError):
                    file.close()


def _locked(folder: Path) -> BinaryIO:
    """A file that one process at a time may hold."""
    file = open(folder / "lock", "ab")  # noqa: SIM115 - closed by Ledger.close()
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise TilesError(
            f"another process is at work in {folder}: wait for it, or choose another folder"
        ) from None
    return file


def _checked(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, or None if the line is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or b"%08x" % zlib.crc32(text) != checksum:
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry


def _compare(folder: Path, entry: dict[str, Any], key: dict[str, Any]) -> None:
    # By way of JSON, which turns tuples into lists.
    wanted = json.loads(json.dumps({"version": VERSION, **key}))
    found = {"version": entry.get("version"), **entry.get("key", {})}
    different = [name for name in wanted if wanted[name] != found.get(name)]
    if different:
        raise TilesError(
            f"{folder} holds a run that differs in {', '.join(different)}: choose another folder, "
            "or remove this one to start again"
        )


def _packed(moments: Moments) -> dict[str, Any]:
    values = (moments.count, moments.mean, moments.var)
    data = [base64.b64encode(t.double().cpu().numpy().tobytes()).decode() for t in values]
    return {"shape": list(moments.mean.shape), "data": data}


def _unit(entry: dict[str, Any]) -> Unit:
    def unpacked(packed: dict[str, Any] | None) -> Moments | None:
        if packed is None:
            return None
        count, mean, var = (
            torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float64).copy())
            for text in packed["data"]
        )
        return Moments(count[0], mean.reshape(packed["shape"]), var.reshape(packed["shape"]))

    return Unit([unpacked(one) for one in entry["moments"]], entry["stored"], entry["output"])
