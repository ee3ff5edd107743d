"""The user's cache folder: what can be made again, built once, shared by processes, never half there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrievo.support.files import remove, write_json

_DONE = "done.json"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/retrievo`, never beside a corpus."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrievo"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache; `build` fills it where it is absent.

    Other processes that want the same folder wait. A build that is killed leaves nothing that is taken for whole.
    """
    folder = cache_folder() / name
    if (folder / _DONE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _DONE).is_file():
            remove(folder)
            folder.mkdir()
            build(folder)
            write_json(folder / _DONE, {})
    return folder


class GrowingArray:
    """A one-dimensional .npy file that is appended to; its length goes into the header at the end."""

    def __init__(self, path: Path, dtype: str):
        self._file, self._dtype, self._count = path.open("wb"), np.dtype(dtype), 0
        self._header()

    def append(self, values: np.ndarray) -> None:
        """Adds values, converted to the type of the file."""
        self._count += len(values)
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        """numpy pads headers, so that a larger count fits the same place."""
        told = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, told)
