"""From a finished work folder to the place of the output, through states that the next run can tell and end.

begun      `OUTPUT.partial/` holds `begin.json`
complete   it holds `manifest.json`, written last: from here on the work is never withdrawn
published  it stands at `OUTPUT`; what stood there before waits in `OUTPUT.old/` until its other files are moved over
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
    """Where an output stands, and the folders beside it through which it comes there.

    path:       the folder, or the file where `single_file`.
    companions: files of the work folder that are published with a single file -> where.
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
        """What is being replaced."""
        return self.path.with_name(self.path.name + ".old")

    @property
    def is_free(self) -> bool:
        """Whether nothing stands there; where a folder is to stand, an empty one is nothing."""
        if self.single_file or not self.path.is_dir():
            return not self.path.exists()
        return not any(self.path.iterdir())

    @property
    def is_complete(self) -> bool:
        """Whether finished work waits to be published."""
        return (self.partial / MANIFEST).is_file()

    @property
    def is_cut_short(self) -> bool:
        """Whether a publication was begun and not ended."""
        return self.is_complete or self.old.exists() or _has_both_marks(self.path) or self._is_emptied

    @property
    def _is_emptied(self) -> bool:
        """Whether nothing but the work folder itself is left to remove."""
        return self.partial.is_dir() and not any(self.partial.iterdir())

    def publish(self) -> None:
        """Puts complete work in its place; only by who holds the lock, and again where it was cut short.

        Raises: RetrievoError where the system refuses; the work stays complete.
        """
        try:
            if self.single_file:
                self._publish_file()
            else:
                self._publish_folder()
        except OSError as problem:
            found = f"can't be put in its place ({problem.strerror or problem})"
            fix = f"the finished work is kept in {self.partial}; run the same command again to publish it"
            raise RetrievoError(self.path, found, None, fix) from None

    def _publish_file(self) -> None:
        beside = manifest_beside(self.path)  # before the file, since it holds for this file's content only
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
            if self.old.exists():  # a reader should find the old one meanwhile
                with contextlib.suppress(OSError):
                    self.old.rename(self.path)
            raise
        if self.old.exists():
            self._give_up_old()

    def end(self, *, replace: bool) -> None:
        """Ends a publication that was cut short; only by who holds the lock.

        replace: whether complete work may take the place of another output.
        Raises: RetrievoError where somebody else's files stand where the output was to stand.
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
        if self.is_free:
            if self.is_complete:
                self.publish()
            else:
                self.old.rename(self.path)
        elif (self.path / MANIFEST).is_file() or not (self.old / MANIFEST).is_file():
            self._give_up_old()
        else:
            found = f"holds files that retrievo did not make, and {self.old} is the output that stood there"
            raise RetrievoError(self.path, found, None, "move one of the two away")

    def _give_up_old(self) -> None:
        """Moves files that no manifest lists to the new output and removes the others, the list itself last."""
        manifest = self.old / MANIFEST
        listed = set(json.loads(manifest.read_text(encoding="utf-8"))["files"]) if manifest.is_file() else set()
        _move_others(self.old, self.path, {*listed, MANIFEST, BEGIN})
        for name in sorted(listed):
            remove(self.old / name)
        remove(self.old / BEGIN)
        remove(manifest)
        remove(self.old)


def manifest_beside(file: Path) -> Path:
    """Where the manifest lies of a single file that has no place for it."""
    return file.with_name(f"{file.name}{BESIDE}")


def is_manifest_beside(path: Path) -> bool:
    """Whether a path is no artifact itself but the manifest of the file beside it, as a pattern finds both."""
    return path.name.endswith(BESIDE) and path.with_name(path.name.removesuffix(BESIDE)).is_file()


def discard(folder: Path) -> None:
    """Removes a folder of retrievo, the marks by which it is known last."""
    for name in os.listdir(folder):
        if name not in (MANIFEST, BEGIN):
            remove(folder / name)
    remove(folder)


def _has_both_marks(folder: Path) -> bool:
    """Whether a folder that was finished where it stands was killed before it lost the mark of unfinished work."""
    return (folder / MANIFEST).is_file() and (folder / BEGIN).is_file()


def _move_others(source: Path, target: Path, listed: Collection[str], above: str = "") -> None:
    """Moves what is not listed, whole folders at once where nothing in them is; a name that is taken gets `.old`."""
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
