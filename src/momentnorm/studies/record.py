"""Record: a study's CSV, with a row for each finished cell, and its JSON, with the conditions."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..support.files import locked, open_regular, write_file
from ..support.machine import processor
from ..support.printable import one_line, printable
from .errors import StudyError
from .results import Results, Row, Value, read_value
from .study import AnyStudy

#: Threads of each cell. More would not speed up small networks, and would change the last digits.
THREADS = 1

#: Packages on whose version the results may depend.
PACKAGES = ("momentnorm", "torch", "numpy", "pillow", "scikit-learn", "scikit-image")


def conditions(setting: str, settings: Any) -> dict[str, Any]:
    """Conditions that all rows of a CSV share, as JSON can hold them."""
    known = {
        "setting": setting,
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version()} | _versions(),
        "threads": THREADS,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
    }
    restored: dict[str, Any] = json.loads(json.dumps(known))  # tuples become lists
    return restored


@contextlib.contextmanager
def claimed(folder: Path, study: AnyStudy) -> Iterator[None]:
    """Make the folder, and keep other processes from running the study into it.

    Raises:
        StudyError: another process runs it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / f".{study.name}.lock"))
        except BlockingIOError as error:
            raise StudyError(
                f"{folder}: another run of {study.name} is writing into it; wait until it has "
                "ended, or give another folder"
            ) from error
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield


def _unwritable(folder: Path, error: OSError) -> StudyError:
    return StudyError(f"{folder}: cannot be written ({error.strerror}); choose another place")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # pragma: no cover - the extra is missing in part
            found[package] = "not installed"
    return found


class Record:
    """Results of one study in a folder: ``NAME.csv`` and ``NAME.json``.

    Args:
        folder: an existing folder.
        study: the study.
        known: conditions of this run, from :func:`conditions`.
        plan: keys of the cells of this run, in the order of their rows.
        restart: delete earlier results.

    Raises:
        StudyError: earlier results were made under other conditions, or cannot be read.
        UserError: the JSON cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        study: AnyStudy,
        known: dict[str, Any],
        plan: Sequence[Row],
        restart: bool,
    ) -> None:
        self._names = list(plan[0])
        self._places = {self._key(keys): place for place, keys in enumerate(plan)}
        name = study.name
        self.csv, self.json = folder / f"{name}.csv", folder / f"{name}.json"
        try:
            if restart:
                for file in (self.csv, self.json, *folder.glob(f"{name}-*.jpg")):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._rows: dict[tuple[Value, ...], Row] = {}
        if self.json.exists() or self.csv.exists():
            before = read_conditions(self.json)
            changed = _differences(before, known)
            if changed:
                raise StudyError(
                    f"{self.csv} was made under other conditions ({', '.join(changed)}): "
                    "start over with --restart, or give another folder"
                )
            if self.csv.exists():
                self._rows = {self._key(row): row for row in read_rows(self.csv, study)}
        else:
            write_file(self.json, json.dumps(known, indent=2) + "\n")

    def finished(self, keys: Row) -> bool:
        """Whether the cell with these keys has a row."""
        return self._key(keys) in self._rows

    def add(self, row: Row) -> None:
        """Add the row of a finished cell, and write the CSV anew."""
        self._rows[self._key(row)] = row
        # Rows of earlier runs that are not in this plan come first.
        ordered = sorted(self._rows, key=lambda key: self._places.get(key, -1))
        rows = [self._rows[key] for key in ordered]
        names = list(dict.fromkeys(name for row in rows for name in row))
        names = [name for name in names if name != "seconds"] + ["seconds"]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.csv, text.getvalue())

    def _key(self, row: Row) -> tuple[Value, ...]:
        return tuple(row[name] for name in self._names)


def read_rows(path: Path, study: AnyStudy) -> list[Row]:
    """Rows of a study's CSV.

    Raises:
        StudyError: the file is not a study's CSV, or it is damaged.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode()
        lines = list(csv.reader(io.StringIO(text, newline="")))
        return _rows(lines, study)
    except (OSError, ValueError, csv.Error) as error:
        raise StudyError(
            f"{path}: not a study's results ({one_line(error)[:100]}); start over with --restart"
        ) from error


def _rows(lines: list[list[str]], study: AnyStudy) -> list[Row]:
    """Rows from the fields of a CSV: layers, the cell's keys, seed, figures, seconds.

    Raises:
        ValueError: the columns are others, a value does not fit its column, a row is there twice,
            or the seeds of a cell have different figures.
    """
    cells = study.cells(study.full, study.kinds[0])
    keys: dict[str, set[Value]] = {name: {cell[name] for cell in cells} for name in cells[0]}
    keys = {"layers": set(study.kinds), **keys, "seed": {0}}
    heading, *rest = lines or [[]]
    if heading[: len(keys)] != list(keys) or heading[-1] != "seconds" or not rest:
        raise ValueError(f"no rows of {', '.join(keys)}, figures, seconds")
    rows: dict[tuple[Value, ...], Row] = {}
    figures: dict[tuple[Value, ...], set[str]] = {}
    for number, line in enumerate(rest, start=1):
        if len(line) != len(heading):
            raise ValueError(f"row {number} has {len(line)} fields of {len(heading)}")
        row = dict(zip(heading, map(read_value, line), strict=True))
        for name, value in row.items():
            if not _fits(value, name, keys):
                raise ValueError(f"row {number}: {name} cannot be {value!r}")
        *cell, seed = (row[name] for name in keys)
        if rows.setdefault((*cell, seed), row) is not row:
            raise ValueError(f"row {number} is there twice")
        found = {name for name, value in row.items() if value != ""}
        if figures.setdefault(tuple(cell), found) != found:
            raise ValueError(f"row {number} has other figures than another seed's")
    return list(rows.values())


def _fits(value: Value, name: str, keys: dict[str, set[Value]]) -> bool:
    """Whether a column can have this value, from the values of the keys in the study."""
    if name not in keys:
        return isinstance(value, int | float) or (value == "" and name != "seconds")
    if isinstance(value, str):
        return value in keys[name]
    # Another setting may have other numbers, such as depths.
    return isinstance(value, int) and all(isinstance(known, int) for known in keys[name])


def read_conditions(path: Path) -> dict[str, Any]:
    """Conditions in a study's JSON.

    Raises:
        StudyError: there is no such file, or it is damaged.
    """
    try:
        with open_regular(path) as file:
            known = json.loads(file.read().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(
            f"{path}: cannot be read, so the conditions of the results beside it are unknown; "
            "start over with --restart"
        ) from error
    needed = {"setting": str, "settings": dict, "versions": dict, "threads": int, "machine": str}
    if (
        not isinstance(known, dict)
        or not all(isinstance(known.get(name), kind) for name, kind in needed.items())
        # The page shows these words, so they must not act on a terminal or a page.
        or any(printable(word) != word for word in _words(known))
    ):
        raise StudyError(f"{path}: not a study's settings; start over with --restart")
    return known


def _words(known: dict[str, Any]) -> Iterator[str]:
    """Strings in nested JSON values, at any depth."""
    waiting: list[Any] = [known]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def read_results(folder: Path, study: AnyStudy) -> tuple[dict[str, Any], Results]:
    """Conditions and results of a study."""
    known = read_conditions(folder / f"{study.name}.json")
    return known, Results(read_rows(folder / f"{study.name}.csv", study))


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Places where two nested dictionaries differ, with both values."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key} was {old}, is {new}")
    return found
