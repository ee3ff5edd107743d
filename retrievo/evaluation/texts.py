"""The texts of queries and documents that reports show, found through the manifests of runs."""

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
from retrievo.support.artifact import Manifest, is_of_kind
from retrievo.support.errors import RetrievoError


@dataclass(frozen=True)
class Texts:
    """The texts of queries and documents, if their tables can be found."""

    queries: Path | None = None
    corpus: Path | None = None

    @classmethod
    def of(cls, runs: Sequence[Run], corpus: Path | None = None) -> Texts:
        """Finds the tables that the runs were made from; `corpus`, if given, replaces the runs' corpus."""
        return cls(queries_of(runs), corpus or corpus_of(runs))

    def of_queries(self, ids: Iterable[str]) -> dict[str, str]:
        """Query id -> text; unknown ids are omitted."""
        wanted = list(ids)
        if self.queries is None or not wanted:
            return {}
        table = Table(self.queries, QUERIES).read(["id", "text"])
        found = table.filter(pc.is_in(table["id"], value_set=pa.array(wanted, pa.string())))
        return dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    def of_documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """Document id -> document; unknown ids are omitted."""
        wanted = list(ids)
        return Corpus(self.corpus).find(wanted) if self.corpus is not None and wanted else {}


def corpus_of(runs: Sequence[Run]) -> Path | None:
    """The corpus of the first run whose manifests lead to one: run -> index -> (embeddings ->) corpus."""
    return _first(runs, "corpus")


def queries_of(runs: Sequence[Run]) -> Path | None:
    """The query table of the first run whose manifests lead to one."""
    return _first(runs, "queries")


def _first(runs: Sequence[Run], name: str) -> Path | None:
    return next((found for run in runs if (found := _follow(run.path, name))), None)


def _follow(path: Path, name: str) -> Path | None:
    """An input of an artifact or of its inputs; None, since texts are optional, where it cannot be found."""
    try:
        manifest = Manifest.read(path)
        if name == "corpus" and mixes_corpora(path):  # an id may belong to documents of two corpora
            return None
        with contextlib.suppress(RetrievoError):  # where it moved, what was made from it beside it may know
            if name in manifest.inputs:
                found = manifest.input_path(name, f"--{name}")
                return _follow(found, name) if is_of_kind(found, "embeddings") else found
        sources = [source for source in manifest.inputs if source in ("embeddings",) or source.startswith("index")]
        trails = (_follow(manifest.input_path(source, f"--{source}"), name) for source in sources)
        return next((path for path in trails if path), None)
    except RetrievoError:
        return None
