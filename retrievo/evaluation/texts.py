"""What a person reads beside numbers: the texts of queries and documents, found through the manifests of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from retrievo.data.corpus import Corpus, Document
from retrievo.data.origin import mixes_corpora
from retrievo.data.run import Run
from retrievo.data.tables import QUERIES, Table
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError


@dataclass(frozen=True)
class Texts:
    """Texts of queries and documents, where the tables that hold them are at hand."""

    queries: Path | None = None
    corpus: Path | None = None

    @classmethod
    def of(cls, runs: Sequence[Run], corpus: Path | None = None) -> Texts:
        """The tables that the runs were made from; `corpus` instead of theirs, where it is given."""
        return cls(queries_of(runs), corpus or corpus_of(runs))

    def of_queries(self, ids: Iterable[str]) -> dict[str, str]:
        """Query id -> text; ids that are not there are left out."""
        wanted = list(ids)
        if self.queries is None or not wanted:
            return {}
        table = Table(self.queries, QUERIES).read(["id", "text"])
        found = table.filter(pc.is_in(table["id"], value_set=pa.array(wanted, pa.string())))
        return dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    def of_documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """Document id -> document; ids that are not there are left out."""
        wanted = list(dict.fromkeys(ids))
        if self.corpus is None or not wanted:
            return {}
        return {found.id: found for found in Corpus(self.corpus).find(wanted) if found}


def corpus_of(runs: Sequence[Run]) -> Path | None:
    """The corpus behind the first run that knows its own: run -> index -> (embeddings ->) corpus."""
    return _first(runs, "corpus")


def queries_of(runs: Sequence[Run]) -> Path | None:
    """The queries of the first run that knows its own."""
    return _first(runs, "queries")


def _first(runs: Sequence[Run], name: str) -> Path | None:
    return next((found for run in runs if (found := _follow(run.path, name))), None)


def _follow(path: Path, name: str) -> Path | None:
    """An input of an artifact or of what it was made from; None where the trail is lost: texts are an extra."""
    try:
        manifest = Manifest.read(path)
        if name == "corpus" and mixes_corpora(path):  # an id may be that of two texts
            return None
        with contextlib.suppress(RetrievoError):  # where it moved, what was made from it beside it may know
            if name in manifest.inputs:
                found = manifest.input_path(name, f"--{name}")
                return _follow(found, name) if _holds_vectors(found) else found
        sources = [source for source in manifest.inputs if source in ("embeddings",) or source.startswith("index")]
        trails = (_follow(manifest.input_path(source, f"--{source}"), name) for source in sources)
        return next((path for path in trails if path), None)
    except RetrievoError:
        return None


def _holds_vectors(path: Path) -> bool:
    try:
        return Manifest.read(path).kind == "embeddings"
    except RetrievoError:  # a table that retrievo did not make
        return False
