"""Artifacts on disk: manifests, and outputs that are never mistaken for finished before they are.

Every output is absent, unfinished (`begin.json` and no manifest) or whole (`manifest.json`, written last). Folders that
cannot be used half-written are built in `OUTPUT.partial/` and published (`support/publishing.py`), so a reader sees
either the old or the new one. A single Parquet file has its manifest in its own metadata; any other single file (a text
run) has `OUTPUT.manifest.json` beside it, which is valid only for the content whose hash it records.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import retrievo
from retrievo.support import console, publishing
from retrievo.support.conditions import is_off
from retrievo.support.errors import RetrievoError
from retrievo.support.files import file_record, fingerprint, full_disk, is_parquet, remove, sync, write_json
from retrievo.support.locks import LOCK_INSIDE, hold
from retrievo.support.publishing import Place, discard, manifest_beside
from retrievo.support.values import Values

MANIFEST, BEGIN = publishing.MANIFEST, publishing.BEGIN
METADATA_KEY = b"retrievo"
OPTIONS = 2  # version of the option names in manifests; configs of other versions cannot be compared
_EMPTIED = {"kind": "", "config": {}, "inputs": {}}  # begin.json while a folder is emptied, so that nothing resumes it

# kind -> version of its format on disk, 1 for a kind that is not listed; a reader refuses newer versions
KINDS = {
    "dataset": 1,
    "run": 1,
    "negatives": 1,
    "dropped-candidates": 1,
    "labels": 1,
    "embeddings": 1,
    "faiss-index": 1,
    "bm25-index": 1,
    "model": 1,
    "cross-encoder": 1,
    "pair-scores": 1,
    "measures": 1,
    "exported-vectors": 1,
}


@dataclass(frozen=True)
class Input:
    """An input of an output: the path as given, the fingerprint of its content, and the files that were read."""

    path: Path
    fingerprint: str
    files: tuple[Path, ...] = ()
    name: str | None = None  # name of a hub model, whose path is a copy in a cache
    revision: str | None = None  # commit of that copy

    def record(self, home: Path) -> dict[str, str]:
        """The input's entry in a manifest; paths below `home` are written relative to it."""
        model = {"name": self.name, "revision": self.revision}
        given = {name: value for name, value in model.items() if value is not None}
        return {"path": _relative(self.path, home), **given, "fingerprint": self.fingerprint}

    @classmethod
    def of(cls, path: Path, files: Sequence[Path] | None = None) -> Input:
        """Creates an input from its files; default: `path` itself, or all files in the manifest of that folder."""
        if files is None and has_manifest(path):
            return cls(path, _digest({k: v for k, v in Manifest.read(path).files.items() if "blake2b" in v}))
        files = (path,) if files is None else tuple(files)
        own = [record for record in map(_own_record, files) if record]
        if len(own) < len(files):
            return cls(path, fingerprint(list(files)), files)
        return cls(path, own[0]["blake2b"] if len(own) == 1 else _digest(own), files)


def _own_record(path: Path) -> Values | None:
    """The record of a file in the manifest of its folder, if the file still has the recorded size."""
    if not (path.parent / MANIFEST).is_file():
        return None
    try:
        record = Manifest.read(path.parent).files.get(path.name)
    except RetrievoError:  # a manifest.json of another program, such as a web page's
        return None
    same = record is not None and "blake2b" in record and record["bytes"] == path.stat().st_size
    return record if same else None


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The manifest of a finished artifact: what it is and how it was made."""

    kind: str
    format: int
    created_by: str
    command: str
    config: Values
    inputs: dict[str, dict[str, str]]
    stats: Values = field(default_factory=dict)
    files: dict[str, Values] = field(default_factory=dict)
    seconds: float | None = None
    options: int = 1  # version of the option names in `config`; absent from the file for version 1
    home: Path = Path()  # the folder that relative input paths refer to; not written to the file

    @classmethod
    def read(cls, path: Path, *kinds: str) -> Manifest:
        """Reads the manifest of an artifact (a folder or a single file) and checks that it is one of `kinds`.

        Raises: RetrievoError where there is no manifest, where the artifact is unfinished, of another kind or of a
            newer format, or where a file that is not Parquet has changed since.
        """
        values = _read_single_file(path, kinds) if path.is_file() else _read_manifest_file(path)
        if not _is_from_retrievo(values):
            raise RetrievoError(path, "its manifest was not written by retrievo", None, "check the path")
        try:
            manifest = cls(**values, home=path.resolve().parent)
        except TypeError:
            raise RetrievoError(path, "its manifest has other keys than this version knows", None, _upgrade()) from None
        if damaged := _damaged(manifest):
            raise RetrievoError(path, f"its manifest is damaged at '{damaged}'", None, "make the artifact again")
        if kinds and manifest.kind not in kinds:
            raise RetrievoError(path, f"is of kind '{manifest.kind}'", f"{' or '.join(kinds)}")
        if manifest.format > KINDS.get(manifest.kind, 1):
            raise RetrievoError(path, f"has format {manifest.format} of '{manifest.kind}'", None, _upgrade())
        return manifest

    def as_json(self) -> Values:
        """The values that are written; fields that are None are omitted."""
        return {name: value for name, value in vars(self).items() if name != "home" and value is not None}

    def input_path(self, name: str, flag: str | None) -> Path:
        """The current path (or glob) of an input: the recorded one if it exists, else one beside the artifact.

        flag: the flag that names the input if it was moved; None where a command has no such flag.
        Raises: RetrievoError, which names the flag, where the input was moved or never recorded.
        """
        if name not in self.inputs:
            raise RetrievoError(self.home, f"its manifest records no {name}", None, f"pass {flag}" if flag else None)
        recorded = Path(self.inputs[name]["path"])
        before, beside = self.home / recorded, self.home / recorded.name
        if before.exists() or glob.glob(str(before)):
            return before
        if beside.exists():  # not tried for a glob, which might match other files there
            return beside
        fix = f"pass {flag}" if flag else f"put it back, or into {self.home}"
        raise RetrievoError(before, f"the {name} this was made from is no longer there", None, fix)


def has_manifest(folder: Path) -> bool:
    """Whether a folder has a manifest of retrievo; a `manifest.json` of another program, as of a web page, is none.

    Raises: RetrievoError where it cannot be read, since it may be a damaged manifest of retrievo.
    """
    return (folder / MANIFEST).is_file() and _is_from_retrievo(_read_manifest_file(folder))


def kind_of(path: Path) -> str | None:
    """The kind of the finished artifact at a path; None for anything else, such as a user's own table."""
    try:
        return Manifest.read(path).kind
    except RetrievoError:
        return None


def is_of_kind(path: Path, kind: str) -> bool:
    """Whether a path holds a finished artifact of this kind."""
    return kind_of(path) == kind


def _is_from_retrievo(values: object) -> bool:
    """Whether the content of a manifest was written by retrievo, in any version."""
    return isinstance(values, dict) and str(values.get("created_by")).startswith("retrievo") and "kind" in values


_VALUE_TYPES = {
    "kind": str,
    "format": int,
    "options": int,
    "created_by": str,
    "command": str,
    "stats": dict,
    "config": dict,
}


def _damaged(manifest: Manifest) -> str | None:
    """The first key whose value does not have the type that retrievo writes."""
    wrong = [key for key, kind in _VALUE_TYPES.items() if not isinstance(getattr(manifest, key), kind)]
    for key, needed in (("inputs", {"path": str, "fingerprint": str}), ("files", {"bytes": int})):
        found = getattr(manifest, key)
        entries = found.values() if isinstance(found, dict) else [None]
        if not all(isinstance(entry, dict) and _has(entry, needed) for entry in entries):
            wrong.append(key)
    return wrong[0] if wrong else None


def _has(values: Mapping[str, object], needed: Mapping[str, type]) -> bool:
    return all(isinstance(values.get(key), kind) for key, kind in needed.items())


def recorded_work(folder: Path, kind: str) -> tuple[Values, Values]:
    """The config and stats of a finished output, or the config and empty stats of an unfinished one.

    Raises: RetrievoError where the folder is neither, or is of another kind.
    """
    if is_unfinished(folder):
        return json.loads((folder / BEGIN).read_text(encoding="utf-8"))["config"], {}
    manifest = Manifest.read(folder, kind)
    return manifest.config, manifest.stats


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds an output that was begun and not finished."""
    return (folder / BEGIN).is_file() and not (folder / MANIFEST).is_file()


def in_force(config: Mapping[str, object]) -> Values:
    """The options that are not off: an older manifest lacks options that were added later, which equals off."""
    return {name: value for name, value in config.items() if not is_off(value) and value != []}


def _upgrade() -> str:
    return f"this is retrievo {retrievo.__version__}; install the version that wrote it"


def _read_manifest_file(folder: Path) -> Values:
    if not folder.exists():
        raise RetrievoError(folder, "no such file or folder", None, "check the path")
    if is_unfinished(folder):
        raise RetrievoError(folder, "is unfinished", None, "run the command that makes it again")
    if not (folder / MANIFEST).is_file():
        raise RetrievoError(folder, "is not an artifact of retrievo (it has no manifest.json)", None, "check the path")
    try:
        values: Values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return values
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        fix = "make the artifact again, or check the path"
        raise RetrievoError(folder / MANIFEST, f"is not JSON: {error}", None, fix) from None


def _read_single_file(path: Path, kinds: Sequence[str]) -> Values:
    """The manifest in a Parquet file's metadata or beside another file; JSON of other programs is refused."""
    beside = manifest_beside(path)
    if is_parquet(path) or not beside.is_file():
        return _read_parquet_metadata(path, kinds)
    try:
        values: Values = json.loads(beside.read_text(encoding="utf-8"))
        recorded = list(values["files"].values())  # a single entry, under the name that the file had when written
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RetrievoError(
            beside, "is not the manifest of a file", None, "remove it, or make the file again"
        ) from None
    if recorded != [_content(path, _stamp(path), path.stat().st_size)]:
        raise RetrievoError(path, f"has changed since retrievo wrote it ({beside.name} records other content)")
    return values


@functools.lru_cache(maxsize=64)
def _content(path: Path, stamp: object, size: int) -> Values:
    """The size and hash of a file, cached until the file's stamp or size changes."""
    return file_record(path)


def _read_parquet_metadata(path: Path, kinds: Sequence[str]) -> Values:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {} if is_parquet(path) else {}
    except pyarrow.ArrowInvalid as error:
        raise RetrievoError(path, f"is not a readable Parquet file: {error}", None, "make it again") from None
    if METADATA_KEY not in metadata:
        expected = " or ".join(kinds) or "a table made by retrievo"
        raise RetrievoError(path, "carries no record of how it was made", expected, "check the path")
    values: Values = json.loads(metadata[METADATA_KEY])
    return values


class Output:
    """One output of one command, from the check of what exists to the manifest.

    A verb asks `already_finished()`, then works inside `build()` and ends with `finish(stats)`:

        output = Output(path, "bm25-index", config, {"corpus": Input.of(corpus)}, force=config.force)
        if not output.already_finished():
            with output.build() as folder:
                ...
                output.finish(stats)

    path:       the folder, or the file if `single_file`.
    force:      whether a finished output may be replaced; unfinished work for the same job is resumed all the same.
    restart:    whether unfinished work is discarded instead of resumed.
    in_place:   whether the folder is built at its final path (models, embeddings), unless it replaces a finished one.
    resumes:    whether unfinished work can be resumed; work in place always can.
    beside:     names in the folder that belong to other outputs (`negatives.parquet`): they may exist before the work
                begins, and the manifest does not list them.
    volatile:   names whose content differs from run to run (logs, checkpoints): listed without a content hash.
    unfinished: patterns of names, besides `volatile`, that a folder built in place may hold before it is finished.
    companions: files of the work folder that are published with a single file, each with its destination.
    continues:  options that may differ from those of a finished output, which is then continued instead of refused.
    adjustable: options that are recorded but not compared, so that unfinished work can be resumed with other values.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        config: Mapping[str, object],
        inputs: Mapping[str, Input],
        *,
        force: bool = False,
        restart: bool = False,
        single_file: bool = False,
        in_place: bool = False,
        resumes: bool = False,
        beside: Sequence[str] = (),
        volatile: Sequence[str] = (),
        unfinished: Sequence[str] = (),
        companions: Mapping[str, Path] | None = None,
        continues: Sequence[str] = (),
        adjustable: Sequence[str] = (),
    ):
        self.path, self.kind, self.config, self.inputs = path, kind, json.loads(json.dumps(config)), inputs
        self.force, self.restart, self.single_file, self.in_place = force, restart, single_file, in_place
        self.resumes = resumes or in_place
        self.beside, self.volatile, self.unfinished, self.continues = beside, volatile, unfinished, continues
        self.adjustable = adjustable
        self.records: dict[str, Values] = {}
        self.start = time.monotonic()
        self.place = Place(path, single_file, companions or {})
        self.folder = path if in_place else self.place.partial  # `already_finished` may settle it otherwise
        self._looked: list[tuple[int, int] | None] = []  # stamp of the finished output, if any, at the first check

    # -- before the work -------------------------------------------------------------------------------------------

    def already_finished(self, *, lead: bool = True, barrier: Callable[[], None] = lambda: None) -> Manifest | None:
        """Returns the manifest if this output already exists with the same options and inputs, else None.

        Every process of a distributed command calls it; only the `lead` completes an interrupted publication, and
        `barrier` lets no process begin before all have checked.
        Raises: RetrievoError where the path holds something else and `force` does not allow replacing it, or where an
            input is at the path.
        """
        waits = self._awaits_publication()
        barrier()
        if lead and self.place.is_cut_short:
            with hold(self.path):
                self.place.end(replace=waits is not None)
        barrier()
        found = self._note_finished(waits) if waits else self._look()
        self._looked = [_stamp(self._mark)]
        barrier()
        return found

    def _look(self) -> Manifest | None:
        """Checks what exists at the path and sets the folder to work in; returns the manifest of finished work."""
        if self.place.is_free:
            if self._has_own_partial():
                self._build_aside()
            return None
        self._check_inputs_elsewhere()
        if self.path.is_dir() == self.single_file:
            raise RetrievoError(
                self.path, f"is a {'folder' if self.path.is_dir() else 'file'}", None, "choose another --output"
            )
        manifest = self._manifest_there()
        if manifest is None:
            self._check_unfinished()
            if not self.in_place:
                self._build_aside()
            return None
        changed = self.differences(manifest.as_json())
        if (
            changed
            and self.continues
            and not self.differences(manifest.as_json() | {"config": self._carried(manifest)})
        ):
            return None
        if changed and not self.force:
            fix = "pass --force or another --output" if manifest.kind == self.kind else "choose another --output"
            raise RetrievoError(self.path, f"is finished, but {'; '.join(changed)}", None, fix)
        if self.force:
            self._build_aside()
            return None
        return self._note_finished(manifest)

    def _note_finished(self, manifest: Manifest) -> Manifest:
        console.note(f"{self.path} is already finished" + ("" if console.is_inner() else "; nothing to do"))
        return manifest

    def _build_aside(self) -> None:
        """Chooses to build the output beside its final path.

        Raises: RetrievoError where no folder can be renamed to that path.
        """
        if os.path.ismount(self.path):
            fix = "choose a folder inside it"
            raise RetrievoError(self.path, "is a mount point, which no finished folder can replace", None, fix)
        self.folder = self.place.partial

    @property
    def _mark(self) -> Path:
        """The file whose presence marks a finished output."""
        return self.path if self.single_file else self.path / MANIFEST

    def _awaits_publication(self) -> Manifest | None:
        """The manifest of this work, if it is complete and its publication was interrupted."""
        waiting = self.place.partial if self.place.is_complete else self.path
        begun = self.place.is_complete or (not self.single_file and self.place.old.exists())
        if self.restart or not begun or not (waiting / MANIFEST).is_file():
            return None
        manifest = Manifest.read(waiting)
        same = not self.differences(manifest.as_json())
        return manifest if same else None

    def _has_own_partial(self) -> bool:
        """Whether to build the output beside its path although the path is free."""
        begin = self.place.partial / BEGIN
        return not self.in_place or (not self.restart and begin.is_file() and self._is_same(_read_json(begin)))

    def _is_same(self, recorded: Mapping[str, object]) -> bool:
        return not self.differences(recorded)

    def holds_same_work(self) -> bool:
        """Whether the path holds this very work, finished or not."""
        marks = [mark for mark in (self.path / MANIFEST, self.path / BEGIN) if mark.is_file()]
        return bool(marks) and self._is_same(_read_json(marks[0]))

    def _check_inputs_elsewhere(self) -> None:
        """Raises RetrievoError where replacing the output would replace one of its inputs (except files `beside`)."""
        here = self.path.resolve()
        for name, given in self.inputs.items():
            for place in (given.path.resolve(), *(file.resolve() for file in given.files)):
                if place == here:
                    raise RetrievoError(self.path, f"is also an input ({name})", None, "choose another --output")
                if place.is_relative_to(here) and place.relative_to(here).parts[0] not in self.beside:
                    raise RetrievoError(self.path, f"holds an input ({name})", None, "choose another --output")

    def _carried(self, manifest: Manifest) -> Values:
        """The options of a finished output after it is continued with this config."""
        now = {name: self.config[name] for name in self.continues if name in self.config}
        return {name: value for name, value in manifest.config.items() if name not in self.continues} | now

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Describes the differences between this output and an existing one; empty where they are the same.

        recorded: the content of the other output's manifest or begin.json.
        """
        if recorded["kind"] != self.kind:
            return [f"it is of kind '{recorded['kind']}', not '{self.kind}'"]
        if recorded.get("options", 1) != OPTIONS:
            return ["another version of retrievo made it, whose options had other names"]
        config, inputs = recorded["config"], recorded["inputs"]
        before, wanted = in_force(config), in_force(self.config)
        changed = [
            f"{name} was {json.dumps(config.get(name))} and is now {json.dumps(self.config.get(name))}"
            for name in dict.fromkeys([*before, *wanted])
            if before.get(name) != wanted.get(name) and name not in self.adjustable
        ]
        now, none = self._inputs(), {"fingerprint": ""}
        pairs = [(name, inputs.get(name, none), now.get(name, none)) for name in dict.fromkeys([*inputs, *now])]
        return changed + [
            f"its input '{name}' has changed{_moved(_shown(was), _shown(given))}"
            for name, was, given in pairs
            if was["fingerprint"] != given["fingerprint"]
        ]

    def _manifest_there(self) -> Manifest | None:
        """The manifest at the path; None for a folder without one."""
        if not self.single_file:
            return Manifest.read(self.path) if (self.path / MANIFEST).is_file() else None
        try:
            return Manifest.read(self.path)
        except RetrievoError as error:
            if self.force:
                return Manifest(self.kind, 0, "", "", {}, {})
            raise RetrievoError(
                self.path, f"exists already and {error.found}", None, "pass --force to replace it"
            ) from None

    def _check_unfinished(self) -> None:
        """Raises RetrievoError where a folder without a manifest is not retrievo's or was begun for another job."""
        begin = self.path / BEGIN
        if self.in_place and begin.is_file():
            began = _read_json(begin)
            changed = self.differences(began)
            if changed and began != _EMPTIED and not (self.force or self.restart):
                fix = "resume it with the same options, pass --restart to start over, or choose another --output"
                raise RetrievoError(self.path, f"is unfinished, but {'; '.join(changed)}", None, fix)
        elif foreign := [name for name in _entries(self.path) if name not in self.beside]:
            fix = "choose another --output"
            raise RetrievoError(
                self.path, f"holds files that retrievo did not make ('{foreign[0]}')", "a new or empty folder", fix
            )

    # -- the work --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def build(self) -> Iterator[Path]:
        """Yields the folder to write into, which holds `begin.json` and is locked against a second writer.

        After an error, only work that can be resumed remains.
        Raises: RetrievoError where the disk is full, naming the folder and the free space.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RetrievoError(self.path.parent, "is a file", "a folder", "choose another --output") from None
        with hold(self.path):
            self._check_unchanged()
            begins_here = not self.folder.exists()
            self.folder.mkdir(exist_ok=True)
            self._prepare()
            try:
                yield self.folder
            except BaseException as problem:
                disk_error = full_disk(self.folder, problem)
                self._withdraw(begins_here)
                if disk_error is not None:
                    raise disk_error from problem
                raise

    def _check_unchanged(self) -> None:
        """Raises RetrievoError where another process has finished an output since this one checked the path."""
        if self._looked not in ([], [_stamp(self._mark)]):
            fix = "run the same command again"
            raise RetrievoError(self.path, "another retrievo has written it meanwhile", None, fix)
        if self.folder == self.path and self.path.exists() and not (self.path / MANIFEST).is_file():
            self._check_unfinished()

    def _prepare(self) -> None:
        """Keeps what can be resumed, removes the rest, and writes `begin.json`."""
        for leftover in self.folder.rglob(".*.tmp"):  # left behind by a writer that was killed
            if leftover.relative_to(self.folder).parts[0] not in self.beside:
                remove(leftover)
        goes_on = self._goes_on()
        if not goes_on:
            self._empty()
        if not goes_on or not (self.folder / BEGIN).is_file() or (self.folder / MANIFEST).is_file():
            write_json(self.folder / BEGIN, self._begin())
        remove(self.folder / MANIFEST)  # a finished output that is continued is unfinished again

    def _goes_on(self) -> bool:
        """Whether this work can use the folder's content as it is."""
        if (self.folder / MANIFEST).is_file():
            return self.folder == self.path
        if not (self.folder / BEGIN).is_file():
            return self.folder == self.path or not _entries(self.folder)
        return self.resumes and not self.restart and self._is_same(_read_json(self.folder / BEGIN))

    def _empty(self) -> None:
        """Removes retrievo's files from the folder, which cannot be mistaken for resumable work meanwhile."""
        entries = [name for name in _entries(self.folder) if name not in (BEGIN, MANIFEST)]
        if self.folder == self.path:
            entries = [name for name in entries if self._may_be_unfinished(name)]
        elif not any((self.folder / mark).is_file() for mark in (BEGIN, MANIFEST)):
            raise RetrievoError(
                self.folder, "holds files that retrievo did not make", None, "remove it, or choose another --output"
            )
        write_json(self.folder / BEGIN, _EMPTIED)
        remove(self.folder / MANIFEST)
        for name in entries:
            remove(self.folder / name)

    def _may_be_unfinished(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*self.volatile, *self.unfinished))

    def _withdraw(self, begins_here: bool) -> None:
        """Removes work that cannot be resumed and a folder without any result; keeps finished work."""
        if (self.folder / MANIFEST).is_file() or not self.folder.exists():
            return
        nothing = [path for path in self.folder.rglob("*") if path.is_file()] == [self.folder / BEGIN]
        aside = self.folder != self.path
        if (nothing and (begins_here or aside)) or (aside and not self.resumes):
            discard(self.folder)
        elif self.restart:
            console.note(f"partial work is kept in {self.folder}; the same command without --restart resumes it")
        else:
            console.note(f"partial work is kept in {self.folder}; the same command resumes it")

    @contextlib.contextmanager
    def build_together(self, *, lead: bool, barrier: Callable[[], None]) -> Iterator[Path]:
        """Runs `build` in the lead of several processes; the others wait until the folder is prepared."""
        with self.build() if lead else contextlib.nullcontext(self.folder) as folder:
            barrier()
            yield folder

    def _begin(self) -> Values:
        """The content of `begin.json`, which identifies the work; it has no time, so that it can be compared."""
        kind = {"kind": self.kind, "format": KINDS.get(self.kind, 1), "options": OPTIONS}
        return kind | {"config": self.config, "inputs": self._inputs()}

    def _inputs(self) -> dict[str, dict[str, str]]:
        home = self.path.resolve().parent
        return {name: given.record(home) for name, given in self.inputs.items()}

    @property
    def elapsed(self) -> float:
        """Seconds since this object was created."""
        return time.monotonic() - self.start

    def record(self, name: str, record: Values) -> None:
        """Records the size and content hash of a file of this output, computed while it was written."""
        self.records[name] = record

    def manifest(self, stats: Mapping[str, object]) -> Manifest:
        """The manifest of this output without files and duration, as a single table has it in its metadata."""
        maker = f"retrievo {retrievo.__version__}"
        command = " ".join(["retrievo", *sys.argv[1:]]) if Path(sys.argv[0]).name == "retrievo" else "library call"
        return Manifest(
            self.kind,
            KINDS.get(self.kind, 1),
            maker,
            command,
            self.config,
            self._inputs(),
            dict(stats),
            options=OPTIONS,
        )

    def finish(self, stats: Mapping[str, object]) -> Manifest:
        """Writes the manifest, after which the work cannot be lost, and publishes the output."""
        manifest = self.manifest(stats)
        if not self.single_file:
            files = {path.relative_to(self.folder).as_posix(): self._record_of(path) for path in self._own_files()}
            manifest = Manifest(**{**manifest.as_json(), "files": files, "seconds": round(self.elapsed, 3)})
        elif (file := self.folder / self.path.name).is_file():
            sync(file)
            if not is_parquet(file):
                manifest = replace(manifest, files={file.name: file_record(file)}, seconds=round(self.elapsed, 3))
                write_json(manifest_beside(file), manifest.as_json())
        write_json(self.folder / MANIFEST, manifest.as_json())
        remove(self.folder / BEGIN)
        if self.folder != self.path:
            self.place.publish()
        return manifest

    def _own_files(self) -> list[Path]:
        foreign = {BEGIN, MANIFEST, LOCK_INSIDE, *(self.beside if self.folder == self.path else ())}
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return [path for path in found if path.relative_to(self.folder).parts[0] not in foreign]

    def _record_of(self, path: Path) -> Values:
        name = path.relative_to(self.folder)
        if name.parts[0] in self.volatile:
            return {"bytes": path.stat().st_size}
        sync(path)  # before the manifest declares the file whole
        return self.records.get(name.as_posix()) or file_record(path)


def _shown(recorded: Mapping[str, str]) -> str:
    """An input for a message: its path, or the name and the commit of a hub model."""
    if "name" in recorded:
        return f"{recorded['name']} at commit {recorded['revision']}"
    return recorded.get("path", "none")


def _moved(was: str, now: str) -> str:
    """Says where an input was and is, for a message; nothing if it is the same place with other content."""
    return "" if was == now else f" ({was} before, {now} now)"


def _relative(path: Path, home: Path) -> str:
    """The path relative to `home` if it is below it, else the absolute path."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(home) if absolute.is_relative_to(home) else absolute)


def _entries(folder: Path) -> list[str]:
    """The names in a folder, except what a writer that was killed at its start leaves: a lock, a partial begin.json."""
    return [
        name
        for name in sorted(os.listdir(folder))
        if not (name.startswith(".") and name.endswith(".lock"))
        and not (name.startswith(f".{BEGIN}.") and name.endswith(".tmp"))
    ]


def _read_json(path: Path) -> Values:
    values: Values = json.loads(path.read_text(encoding="utf-8"))
    return values


def _stamp(path: Path) -> tuple[int, int] | None:
    """Identifies a file, so that a replacement is noticed; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def end_publication(path: Path) -> None:
    """Completes or rolls back an interrupted publication of a folder, and does nothing else.

    Raises: RetrievoError where another process is publishing it now.
    """
    place = Place(path)
    if place.old.exists() or (place.is_complete and place.is_free):
        with hold(path):
            place.end(replace=False)
