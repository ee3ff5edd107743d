"""Lists and removes the entries of the cache; an entry that is being built or used is never removed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.cache import ABOUT, DONE, cache_folder, folder_bytes, lock_of
from retrievo.support import console
from retrievo.support.artifact import MANIFEST
from retrievo.support.locks import Holder, take
from retrievo.support.sizes import format_size
from retrievo.support.values import Values

if TYPE_CHECKING:
    from filelock import MarkerSoftFileLock

KINDS = {  # folder in the cache, without its format version -> words for a person
    "ids": "id map",
    "identities": "text identities",
    "tokens": "tokens",
    "shingles": "word shingles",
    "query-clusters": "query clusters",
    "scratch": "untrained model",
    "bm25": "BM25 index",
    "embeddings": "embeddings",
}
_DAY = 86_400.0


@dataclass(frozen=True)
class Entry:
    """A folder of the cache.

    bytes:   its size.
    used:    time of the last use, in seconds since 1970.
    made_of: paths of the tables and models that it was built from.
    whole:   False while it is being built, or after its build was killed.
    """

    path: Path
    kind: str
    bytes: int
    used: float
    made_of: tuple[str, ...]
    whole: bool

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """The entry's row in the printed table: kind, size, last use, the tables it was built from, and path."""
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used)) if self.whole else "unfinished"
        return self.kind, format_size(self.bytes), used, " ".join(self.made_of) or "unknown", str(self.path)

    def as_json(self) -> Values:
        used = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.used))
        return {**vars(self), "path": str(self.path), "used": used, "made_of": list(self.made_of)}


@dataclass(frozen=True)
class Inventory:
    """The entries of the cache, most recently used first, and the entries that were removed (None: not pruned)."""

    folder: Path
    entries: tuple[Entry, ...]
    removed: tuple[Entry, ...] | None = None

    def print(self, *, as_json: bool = False) -> None:
        """Prints the entries to stdout or, after pruning, the removed ones; JSON output has both."""
        if as_json:
            lists = {"entries": self.entries, "removed": self.removed or ()}
            shown = {name: [entry.as_json() for entry in entries] for name, entries in lists.items()}
            total = _total(self.entries)
            print(json.dumps({"folder": str(self.folder), "bytes": total, **shown}, ensure_ascii=False, indent=2))
            return
        entries = self.entries if self.removed is None else self.removed
        rows = [*(entry.row for entry in entries), ("total", format_size(_total(entries)), "", "", str(self.folder))]
        console.print_table(("kind", "size", "last used", "made of", "path"), rows)
        if self.removed is not None:
            console.note(f"{len(self.entries):,} entries remain ({format_size(_total(self.entries))})")


def _total(entries: Sequence[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def inventory() -> Inventory:
    """Lists all entries of the user's cache, most recently used first."""
    folder = cache_folder()
    return Inventory(folder, tuple(sorted(_entries(folder), key=lambda entry: (-entry.used, entry.path))))


def prune(*, older_than: float | None, max_size: int | None) -> Inventory:
    """Removes entries, least recently used first; keeps entries that are in use, with a warning.

    Without `older_than` and `max_size` it removes all entries.

    older_than: removes entries whose last use was at least this many days ago.
    max_size:   removes entries until the cache holds at most this many bytes.
    """
    found, removed = inventory(), []
    for leftover in found.folder.glob("*/.*.removed"):  # left behind by a prune that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    left, now = _total(found.entries), time.time()
    for entry in reversed(found.entries):
        old = older_than is not None and now - entry.used >= older_than * _DAY
        large = max_size is not None and left > max_size
        if not (old or large or (older_than is None and max_size is None)):
            continue
        if (held := _remove(entry.path)) is not None:
            console.warn(f"{entry.path} is in use by {held}, so it is kept ({held.way_out})")
            continue
        left -= entry.bytes
        removed.append(entry)
    gone = {entry.path for entry in removed}
    return replace(found, entries=tuple(e for e in found.entries if e.path not in gone), removed=tuple(removed))


def _remove(folder: Path) -> Holder | None:
    """Removes an entry; returns the process that is building or using it if it cannot be removed."""
    with contextlib.ExitStack() as locks:
        marks = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.use"))
        for file in (lock_of(folder), *marks):
            if (held := take(lock := _lock(file), quietly=True)) is not None:
                return held
            locks.callback(lock.release)
        doomed = folder.with_name(f".{folder.name}.removed")
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return None


def _lock(file: Path) -> MarkerSoftFileLock:
    from filelock import MarkerSoftFileLock

    return MarkerSoftFileLock(file)


def _entries(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.glob("*/*")):
        if path.is_dir() and not path.name.startswith("."):
            last = next((path / name for name in (DONE, MANIFEST) if (path / name).is_file()), None)
            kind = path.parent.name
            with contextlib.suppress(FileNotFoundError):  # another process may remove it meanwhile
                used = (last or path).stat().st_mtime
                word = KINDS.get(kind.rpartition("-")[0] or kind, kind)
                yield Entry(path, word, folder_bytes(path), used, _made_of(path), last is not None)


def _made_of(path: Path) -> tuple[str, ...]:
    """The paths that an entry was built from; empty where its record is missing or unreadable."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        if (path / ABOUT).is_file():
            return tuple(map(str, json.loads((path / ABOUT).read_text(encoding="utf-8"))["made_of"]))
        inputs = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["inputs"]
        return tuple(os.path.normpath(path.parent / given["path"]) for given in inputs.values())
    return ()
