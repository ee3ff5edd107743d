"""Moves a finished work folder to the path of the output, through states that the next run can detect and complete.

begun      `OUTPUT.partial/` holds `begin.json`.
complete   `OUTPUT.partial/` holds `manifest.json`, written last; from now on the work is never discarded.
published  The folder is at `OUTPUT`; its predecessor is in `OUTPUT.old/` until its unlisted files have been moved over.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retrievo.support.errors import RetrievoError
from retrievo.support.files import remove

MANIFEST, BEGIN = "manifest.json", "begin.json"
BESIDE = ".manifest.json"  # added to the name of a single file that is not Parquet


@dataclass(frozen=True)
class Place:
    """The path of an output, and the folders beside it that publication uses.

    path:       the folder, or the file if `single_file`.
    companions: files of the work folder that are published with a single file, each with its destination.
    """

    path: Path
    single_file: bool = False
    companions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        """The work folder."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def old(self) -> Path:
        """The folder that holds the output that is being replaced."""
        return self.path.with_name(self.path.name + ".old")

    @property
    def is_free(self) -> bool:
        """Whether the path is free; for a folder output, an empty folder counts as free."""
        if self.single_file or not self.path.is_dir():
            return not self.path.exists()
        return not any(self.path.iterdir())

    @property
    def is_complete(self) -> bool:
        """Whether finished work is waiting to be published."""
        return (self.partial / MANIFEST).is_file()

    @property
    def is_cut_short(self) -> bool:
        """Whether a publication was interrupted."""
        return self.is_complete or self.old.exists() or _has_both_marks(self.path) or self._is_emptied

    @property
    def _is_emptied(self) -> bool:
        """Whether the work folder is empty and only remains to be removed."""
        return self.partial.is_dir() and not any(self.partial.iterdir())

    def publish(self) -> None:
        """Moves complete work to its path; the caller holds the lock, and may repeat an interrupted call.

        Raises: RetrievoError where the operating system refuses; the work stays complete.
        """
        try:
            if self.single_file:
                self._publish_file()
            else:
                self._publish_folder()
        except OSError as problem:
            found = f"cannot be moved to its path ({problem.strerror or problem})"
            fix = f"the finished work is kept in {self.partial}; run the same command again to publish it"
            raise RetrievoError(self.path, found, None, fix) from None

    def _publish_file(self) -> None:
        beside = manifest_beside(self.path)  # moved before the file, since it is valid only for this file's content
        for name, place in {**self.companions, beside.name: beside, self.path.name: self.path}.items():
            if (self.partial / name).exists():
                (self.partial / name).replace(place)
        discard(self.partial)

    def _publish_folder(self) -> None:
        remove(self.partial / BEGIN)
        if not self.is_free:
            self.path.rename(self.old)
        try:
            self.partial.rename(self.path)
        except OSError:
            if self.old.exists():  # restore the old output for readers
                with contextlib.suppress(OSError):
                    self.old.rename(self.path)
            raise
        if self.old.exists():
            self._remove_old()

    def end(self, *, replace: bool) -> None:
        """Completes or rolls back an interrupted publication; the caller holds the lock.

        replace: whether complete work may replace another output.
        Raises: RetrievoError where files that retrievo did not make are at the path of the output.
        """
        if _has_both_marks(self.path):
            remove(self.path / BEGIN)
        if self.old.exists():
            self._end_swap()
        if self.is_complete and (replace or self.is_free):
            self.publish()
        if self._is_emptied:
            self.partial.rmdir()

    def _end_swap(self) -> None:
        """Completes or rolls back an interrupted swap."""
        if self.is_free:
            if self.is_complete:
                self.publish()
            else:
                self.old.rename(self.path)
        elif (self.path / MANIFEST).is_file() or not (self.old / MANIFEST).is_file():
            self._remove_old()
        else:
            found = f"holds files that retrievo did not make, and {self.old} is the output that stood there"
            raise RetrievoError(self.path, found, None, "move one of the two away")

    def _remove_old(self) -> None:
        """Moves unlisted files of the old output into the new one and removes the listed ones, its manifest last."""
        manifest = self.old / MANIFEST
        listed = set(json.loads(manifest.read_text(encoding="utf-8"))["files"]) if manifest.is_file() else set()
        _move_others(self.old, self.path, {*listed, MANIFEST, BEGIN})
        for name in sorted(listed):
            remove(self.old / name)
        remove(self.old / BEGIN)
        remove(manifest)
        remove(self.old)


def manifest_beside(file: Path) -> Path:
    """The path of the manifest of a single file whose format cannot hold one."""
    return file.with_name(f"{file.name}{BESIDE}")


def is_manifest_beside(path: Path) -> bool:
    """Whether a path is the manifest of a file beside it and not an artifact itself, since a glob matches both."""
    return path.name.endswith(BESIDE) and path.with_name(path.name.removesuffix(BESIDE)).is_file()


def discard(folder: Path) -> None:
    """Removes a folder of retrievo; the files that identify it go last."""
    for name in os.listdir(folder):
        if name not in (MANIFEST, BEGIN):
            remove(folder / name)
    remove(folder)


def _has_both_marks(folder: Path) -> bool:
    """Whether a folder has both a manifest and `begin.json`, because its writer was killed between the two steps."""
    return (folder / MANIFEST).is_file() and (folder / BEGIN).is_file()


def _move_others(source: Path, target: Path, listed: Collection[str], above: str = "") -> None:
    """Moves unlisted files, and whole folders without listed files; where a name is taken, `.old` is appended."""
    parents = {name[: place + 1] for name in listed for place, letter in enumerate(name) if letter == "/"}
    for entry in sorted(source.iterdir()):
        name = above + entry.name
        if name in listed:
            continue
        is_folder = entry.is_dir() and not entry.is_symlink()
        if is_folder and (name + "/" in parents or (target / entry.name).is_dir()):
            _move_others(entry, target / entry.name, listed, name + "/")
        else:
            target.mkdir(parents=True, exist_ok=True)
            entry.rename(_free_name(target / entry.name))


def _free_name(path: Path) -> Path:
    while os.path.lexists(path):
        path = path.with_name(path.name + ".old")
    return path
