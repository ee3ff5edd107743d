"""`retrievo.build_index`: from texts or vectors in memory, or on disk, to an index that is open for search."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.commands.encode import EncodeConfig, encode
from retrievo.commands.index import IndexConfig, index
from retrievo.retrieval.index_types import BM25
from retrievo.support import console
from retrievo.support.errors import UsageError, did_you_mean
from retrievo.support.options import Options, options_of
from retrievo.support.values import Values

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from retrievo.data.given import PathLike, TextsLike
    from retrievo.retrieval.opened import Index

EXACT = "exact"  # search in the vectors themselves
_OWN = ("model", "corpus", "queries", "embeddings", "output", "type", "add", "restart", "processes")

_HASHED_AT_ONCE = 1 << 12  # rows, whose strings are far below 2 GiB together


def build_index(
    documents: PathLike | TextsLike | np.ndarray,
    type: str = BM25,
    *,
    model: str | None = None,
    output: PathLike | None = None,
    titles: Iterable[str | None] | None = None,
    ids: Iterable[str] | None = None,
    **fields: Any,
) -> Index:
    """Builds an index of documents, or finds it finished, and opens it.

    documents: texts, {id: text}, a table of `id`, `text` and perhaps `title`, the path of one, vectors [N, D], or the
               path of an embeddings folder. titles: of a list of texts. ids: of vectors; default their row numbers.
    type:      `bm25`; of vectors `exact`, or any type of `retrievo index`. Texts become vectors by `model`.
    output:    the folder of the index; default a temporary one, which goes with the object that is returned. What an
               index of texts in memory was made from lies beside it, in OUTPUT-corpus.parquet and OUTPUT-embeddings.
    fields:    other options of `retrievo encode` and `retrievo index`, such as `dtype` or `language`.

    Raises: RetrievoError for documents that are none; UsageError for options that do not exist or do not apply.
    """
    from retrievo.retrieval.opened import Index
    from retrievo.retrieval.searcher import open_index
    from retrievo.support.artifact import is_of_kind

    home = tempfile.TemporaryDirectory(prefix="retrievo-") if output is None else None
    place = Path(output) if output is not None else Path(home.name) / "index"  # type: ignore[union-attr]
    encoding, indexing = _options(fields)
    with console.inner_steps():
        source = _on_disk(documents, place, type, titles, ids, bool(fields.get("force")))
        if is_of_kind(source, "embeddings"):
            source = source if type == EXACT else _index(place, type=type, embeddings=source, **indexing)
        elif type == BM25:
            source = _index(place, type=type, corpus=source, **indexing)
        else:
            if model is None:
                raise UsageError(f"type {type}", "needs vectors", "an encoder for the texts", "pass model=FOLDER")
            vectors = place if type == EXACT else place.with_name(f"{place.name}-embeddings")
            encode(model=model, corpus=source, output=vectors, **encoding)
            source = vectors if type == EXACT else _index(place, type=type, embeddings=vectors, **indexing)
    return Index(open_index(source), home)


def _index(place: Path, **fields: Any) -> Path:
    index(output=place, **fields)
    return place


def _options(fields: Mapping[str, object]) -> tuple[Values, Values]:
    """Those of `encode` and those of `index`.

    Raises: UsageError for others.
    """

    def known(config: type[Options]) -> list[str]:
        return [option.name for option in options_of(config) if option.name not in _OWN]

    for name in fields:
        if name not in (both := [*known(EncodeConfig), *known(IndexConfig)]):
            raise UsageError("build_index()", f"unknown option '{name}'", None, did_you_mean(name, both))
    parts = [{name: fields[name] for name in known(kind) if name in fields} for kind in (EncodeConfig, IndexConfig)]
    return parts[0], parts[1]


def _on_disk(
    documents: PathLike | TextsLike | np.ndarray,
    place: Path,
    type: str,
    titles: Iterable[str | None] | None,
    ids: Iterable[str] | None,
    force: bool,
) -> Path:
    """Where the documents lie: where they are, or where they were just written."""
    import numpy as np

    from retrievo.data.given import is_path, text_table
    from retrievo.data.tables import CORPUS

    if is_path(documents):
        return Path(documents)
    if isinstance(documents, np.ndarray) and documents.dtype.kind == "f":
        folder = place if type == EXACT else place.with_name(f"{place.name}-embeddings")
        return _write_vectors(documents, ids, folder, force)
    table = text_table(documents, CORPUS, "build_index()", titles)
    return _write_corpus(table, place.with_name(f"{place.name}-corpus.parquet"), force)


def _write_corpus(table: pa.Table, path: Path, force: bool) -> Path:
    """The documents as a table that carries its manifest."""
    from retrievo.data.tables import TableWriter
    from retrievo.support.artifact import Output

    output = Output(path, "dataset", {"content": _digest(table)}, {}, force=force, single_file=True)
    if not output.already_finished():
        stats = {"rows": table.num_rows}
        with output.build() as folder, TableWriter(folder / path.name, table.schema) as writer:
            writer.write(table)
            writer.close(output.manifest(stats))
            output.finish(stats)
    return path


def _write_vectors(vectors: np.ndarray, ids: Iterable[str] | None, folder: Path, force: bool) -> Path:
    """The vectors as an embeddings folder; float64 becomes float32."""
    import numpy as np
    import pyarrow as pa

    from retrievo.data.shards import shard_bounds
    from retrievo.retrieval.embeddings import embeddings_stats, shard_name, write_shard
    from retrievo.support.artifact import Output

    if vectors.ndim != 2:
        raise UsageError("build_index()", f"found vectors of shape {vectors.shape}", "[documents, dimensions]")
    stored = vectors.astype(np.float16 if vectors.dtype == np.float16 else np.float32)
    names = pa.array(map(str, range(len(stored)) if ids is None else ids), pa.string())
    if len(names) != len(stored) or len(names.unique()) != len(names):
        raise UsageError(
            "ids", f"found {len(names.unique()):,} different ones", f"{len(stored):,}, one for each vector"
        )
    record = {"content": _digest(pa.table({"id": names, "vector": pa.array(list(stored))}))}
    output = Output(folder, "embeddings", record, {}, force=force)
    if not output.already_finished():
        with output.build():
            for number, (first, end) in enumerate(shard_bounds(len(stored))):
                shard, own = output.folder / shard_name(number), names.slice(first, end - first)
                output.record(shard.name, write_shard(shard, own, stored[first:end]))
            output.finish(embeddings_stats(len(stored), stored.shape[1], stored.dtype.name, "document", "dot"))
    return folder


def _digest(table: pa.Table) -> str:
    """A hash of the values of a table, however they are cut into chunks."""
    digest = hashlib.blake2b(digest_size=16)
    for first in range(0, len(table), _HASHED_AT_ONCE):
        for batch in table.slice(first, _HASHED_AT_ONCE).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()
