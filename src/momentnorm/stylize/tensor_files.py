"""Tensor files: safetensors, written whole and checked before they are used."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..support.files import open_regular
from ..support.printable import one_line
from .errors import StylizeError
from .images import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: safetensors' names of the dtypes that a network's numbers can have in a file.
_FLOATING = ("F64", "F32", "F16", "BF16")


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write the whole file or none. Equal tensors and metadata give equal bytes."""
    contiguous = {key: tensors[key].contiguous() for key in sorted(tensors)}
    encoded = _sorted_metadata(save(contiguous, metadata))
    with whole_file(path) as file:
        file.write(encoded)


def _sorted_metadata(encoded: bytes) -> bytes:
    """File contents with sorted metadata; safetensors orders it differently in each run."""
    length = int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + encoded[8 + length :]


@dataclass(frozen=True)
class Kind:
    """Kind of file, by its metadata.

    Args:
        form: entry "format" of the metadata.
        version: the newest version that is known.
        what: name of the kind in messages, with the article.
        fix: advice for a file of another kind.
    """

    form: str
    version: int
    what: str
    fix: str


@dataclass(frozen=True)
class TensorFile:
    """Open file of the right kind. Its tensors are not read yet."""

    path: Path
    kind: Kind
    metadata: Mapping[str, str]
    source: Any

    def read(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the tensors, in the dtypes of those expected.

        Names, shapes and dtypes are compared before anything is read, so a file takes no more
        memory than its own size.

        Args:
            expected: tensors by name; those on the meta device will do.

        Raises:
            StylizeError: the file has other tensors than these, or numbers that are not finite in
                the expected dtype.
        """
        names = set(self.source.keys())
        if missing := sorted(expected.keys() - names):
            raise self.error(f"{missing[0]} is missing")
        if extra := sorted(names - expected.keys()):
            raise self.error(f"{extra[0]} does not belong here")
        for name, wanted in expected.items():
            self._compare(name, wanted)
        return {name: self._read(name, wanted) for name, wanted in expected.items()}

    def _compare(self, name: str, wanted: Tensor) -> None:
        found = self.source.get_slice(name)
        shape, dtype = tuple(found.get_shape()), found.get_dtype()
        if shape != tuple(wanted.shape):
            raise self.error(
                f"{name} has shape {shape}, not {tuple(wanted.shape)} as the metadata says"
            )
        allowed = _FLOATING if wanted.is_floating_point() else ("I64",)
        if dtype not in allowed:
            raise self.error(f"{name} is of dtype {dtype}, not one of {', '.join(allowed)}")

    def _read(self, name: str, wanted: Tensor) -> Tensor:
        # A copy: the file's own memory changes when somebody writes over the file.
        values: Tensor = self.source.get_tensor(name).to(wanted.dtype, copy=True)
        if not torch.isfinite(values).all():
            raise self.error(f"{name} is not finite in {str(wanted.dtype).removeprefix('torch.')}")
        return values

    def error(self, text: str) -> StylizeError:
        """Error that names the file, what is wrong with it, and the fix."""
        return StylizeError(f"{self.path}: {text[:200]}; {self.kind.fix}")


@contextlib.contextmanager
def open_tensors(path: Path, kind: Kind) -> Iterator[TensorFile]:
    """Open a file of this kind, of its version or an older one.

    Raises:
        StylizeError: it is of another kind, damaged, or newer.
    """
    with contextlib.ExitStack() as stack:
        try:
            open_regular(path).close()
            source = stack.enter_context(safe_open(path, framework="pt"))
            metadata = source.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or one_line(error)
            raise StylizeError(
                f"{path}: not {kind.what} file ({text[:100]}); {kind.fix}"
            ) from error
        if metadata.get("format") != kind.form:
            raise StylizeError(f"{path}: safetensors, but not {kind.what} file; {kind.fix}")
        try:
            found = int(metadata["version"])
        except (KeyError, ValueError) as error:
            raise StylizeError(f"{path}: has no version; {kind.fix}") from error
        if found > kind.version:
            raise StylizeError(
                f"{path}: written by a newer momentnorm (format {found}, known is "
                f"{kind.version}): pip install --upgrade momentnorm"
            )
        yield TensorFile(path, kind, metadata, source)
