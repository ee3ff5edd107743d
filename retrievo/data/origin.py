"""Finds the corpus and the queries that an artifact was made from, following the manifests of its inputs.

Tables are equal if their files are, whatever their paths: texts in memory, which `build_index` writes to a file of its
own, are another table than the file that they were read from. An artifact without a manifest, such as a run of another
tool, has no known origin and is never refused for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrievo.data.finding import table_files
from retrievo.support import console
from retrievo.support.artifact import Input, Manifest
from retrievo.support.errors import RetrievoError
from retrievo.support.files import fingerprint

CORPUS, QUERIES = "corpus", "queries"
_MADE_OF = ("index", "embeddings", "run")  # names of inputs that have origins of their own


@dataclass(frozen=True)
class Origin:
    """A table that an artifact was made from: its path, which may no longer exist, and its fingerprint at the time."""

    noun: str
    path: Path
    fingerprint: str

    @classmethod
    def of(cls, noun: str, given: Input) -> Origin:
        """The origin of an input that is being read now."""
        return cls(noun, given.path, given.fingerprint)

    def __str__(self) -> str:
        return str(self.path)

    @functools.cached_property
    def files(self) -> frozenset[str]:
        """The fingerprint of each of its files; empty where the table is gone or has changed since."""
        try:
            found = table_files(self.path, self.noun)
            unchanged = Input.of(self.path, found).fingerprint == self.fingerprint
            return frozenset(fingerprint([file]) for file in found) if unchanged else frozenset()
        except (RetrievoError, OSError):
            return frozenset()


def origins(path: Path, noun: str) -> tuple[Origin, ...]:
    """The corpora or query tables that an artifact was made from, directly or indirectly; empty where unknown."""
    try:
        manifest = Manifest.read(path)
    except RetrievoError:  # a file of another tool, or an artifact that no longer exists
        return ()
    own = [name for name in manifest.inputs if re.fullmatch(rf"{noun}(-\d+)?", name)]
    between = [name for name in manifest.inputs if re.fullmatch(rf"({'|'.join(_MADE_OF)})(-\d+)?", name)]
    found = [_origin(manifest, noun, name) for name in own] or [_behind(manifest, noun, name) for name in between]
    return tuple({one.fingerprint: one for several in found for one in several}.values())


def _origin(manifest: Manifest, noun: str, name: str) -> tuple[Origin, ...]:
    """The origin of an input that is a table of this noun or the embeddings of one."""
    path = _place(manifest, name)
    behind = origins(path, noun) if path.is_dir() else ()
    return behind or (Origin(noun, path, manifest.inputs[name]["fingerprint"]),)


def _behind(manifest: Manifest, noun: str, name: str) -> tuple[Origin, ...]:
    return origins(_place(manifest, name), noun)


def _place(manifest: Manifest, name: str) -> Path:
    """The path of an input now, or the recorded path where it no longer exists."""
    try:
        return manifest.input_path(name, None)
    except RetrievoError:
        return manifest.home / manifest.inputs[name]["path"]


def same(one: Sequence[Origin], other: Sequence[Origin]) -> bool:
    """Whether two artifacts were made from the same tables, however the files are grouped into tables."""
    if {found.fingerprint for found in one} == {found.fingerprint for found in other}:
        return True
    files = [[found.files for found in several] for several in (one, other)]
    return all(map(all, files)) and frozenset().union(*files[0]) == frozenset().union(*files[1])


def part_of(one: Sequence[Origin], other: Sequence[Origin]) -> bool:
    """Whether the tables of one artifact are among those of the other, in either direction."""
    if same(one, other) or {found.fingerprint for found in one} & {found.fingerprint for found in other}:
        return True
    first, second = (frozenset().union(*(found.files for found in several)) for several in (one, other))
    return bool(first) and bool(second) and (first <= second or second <= first)


def _agree(one: Sequence[Origin], other: Sequence[Origin]) -> bool:
    """Whether two sets of queries share ids and every shared id has the same text in both."""
    first, second = _texts(one), _texts(other)
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[name] == second[name] for name in shared)


def _texts(tables: Sequence[Origin]) -> dict[str, str]:
    """Texts by id; tables that are gone or have changed since are skipped."""
    from retrievo.data.tables import QUERIES as COLUMNS
    from retrievo.data.tables import Table

    found: dict[str, str] = {}
    for origin in tables:
        if origin.files:
            table = Table(origin.path, COLUMNS).read(["id", "text"])
            found |= zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    return found


def mixes_corpora(path: Path) -> bool:
    """Whether a run ranks documents of several corpora, so that an id alone does not identify a document."""
    try:
        return bool(Manifest.read(path).config.get("across_corpora"))
    except RetrievoError:
        return False


def named(tables: Iterable[Origin]) -> str:
    """The paths of some tables, joined for a message."""
    return " and ".join(dict.fromkeys(map(str, tables)))


def fits(noun: str, one: Sequence[Origin], other: Sequence[Origin]) -> bool:
    """Whether two artifacts may have the same origin: true where either is unknown; queries may be a subset."""
    if not one or not other:
        return True
    return same(one, other) or (noun == QUERIES and (part_of(one, other) or _agree(one, other)))


def read_now(noun: str, given: Input) -> tuple[Origin, ...]:
    """The origin of an input that is being read: the table itself, or the table that its vectors were made from."""
    return (origins(given.path, noun) if given.path.is_dir() else ()) or (Origin.of(noun, given),)


def warn_of_others(path: Path, **given: Input) -> None:
    """Warns where an artifact was made from another corpus or other queries than the ones it is used with."""
    for noun, table in given.items():
        found = origins(path, noun)
        if not fits(noun, found, read_now(noun, table)):
            other = "other queries" if noun == QUERIES else f"another {noun}"
            thing = "queries" if noun == QUERIES else "documents"
            problem = f"was made from {other} ({named(found)}) than {table.path}"
            console.warn(f"{path}: {problem}; its ids may refer to other {thing}")


def warn_of_other_judgments(qrels: Input, what: object, queries: Sequence[Origin]) -> None:
    """Warns where judgments belong to a dataset with other queries than those of a run or a search."""
    for file in qrels.files:
        table = (file.parent.parent if file.parent.name == "qrels" else file.parent) / "queries.parquet"
        if table.is_file():
            beside = (Origin.of(QUERIES, Input.of(table, [table])),)
            if not fits(QUERIES, beside, queries):
                problem = f"is in a dataset with other queries ({table}) than those of {what} ({named(queries)})"
                console.warn(f"{qrels.path}: {problem}; its ids may refer to other queries")
                return
