"""`retrievo import`: converts data of another format into a dataset folder, as a stream."""

from __future__ import annotations

import codecs
import importlib
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.importers import FORMATS
from retrievo.data.options import force_option, output_option
from retrievo.models.encoder_spec import SIMILARITIES
from retrievo.support import console
from retrievo.support.conditions import Condition, only_where, only_with, only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.data.importers.dataset import ColumnsRead, DatasetWriter
    from retrievo.data.importers.input_files import ImportSource, Part
    from retrievo.support.artifact import Manifest

VECTORS = "vectors"
_OF_VECTORS = ("ids", "role", "similarity")
_SHOWN = 8  # files named in the summary


def _check_encoding(name: str) -> None:
    try:
        codecs.lookup(name)
    except LookupError:
        raise UsageError("--encoding", f"found '{name}'", "an encoding such as utf-8, latin-1 or cp1252") from None


def _of_format(name: str) -> Condition:
    """An option applies to the formats whose row in `FORMATS` names it."""
    formats = [format for format, row in FORMATS.items() if name in row.options]
    formats += [VECTORS] if name in _OF_VECTORS else []
    said = f"to the format {' or '.join(formats)}"
    return only_where(said, "format", holds=lambda chosen: chosen in formats)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Options):
    """Options of `retrievo import`."""

    format: str = option(
        f"Format: {', '.join(FORMATS)} or {VECTORS}. The format "
        + "; ".join(f"{name} is {format.about}" for name, format in FORMATS.items())
        + f"; {VECTORS} is an array X.npy and a text file IDS.txt with an id per line.",
        choices=(*FORMATS, VECTORS),
        positional=True,
        group="Data",
    )
    source: Path = option("Source to import: a folder, a file, a .zip or a .gz.", positional=True, group="Data")
    ids: Path | None = option(
        "Text file with the id of each vector.",
        default=None,
        positional=True,
        shown=True,
        applies=_of_format("ids"),
        group="Data",
    )
    output: Path = output_option("Dataset folder to write. The format vectors writes an embeddings folder.")
    encoding: str = option("Character encoding of the source.", default="utf-8", check=_check_encoding, group="Data")
    role: str = option(
        "Kind of rows: documents or queries.",
        default="document",
        choices=("document", "query"),
        applies=_of_format("role"),
        shown=True,
        group="Data",
    )
    similarity: str = option(
        "Similarity between a query vector and a document vector.",
        default="dot",
        choices=SIMILARITIES,
        applies=_of_format("similarity"),
        group="Data",
    )
    id_column: str | None = option(
        "Column of the ids, by name or by number from 1.",
        default=None,
        applies=_of_format("id_column"),
        shown=True,
        hidden_default="a column with a usual name; 1 without a header",
        group="Data",
    )
    text_column: str | None = option(
        "Column of the texts, by name or by number from 1.",
        default=None,
        applies=_of_format("text_column"),
        shown=True,
        hidden_default="a column with a usual name; 2 without a header",
        group="Data",
    )
    title_column: str | None = option(
        "Column of the titles, by name or by number from 1.",
        default=None,
        applies=_of_format("title_column") & only_with("role", "document"),
        shown=True,
        hidden_default="a column with a usual name, if there is one",
        group="Data",
    )
    number_lines: bool = option(
        "Use line numbers as ids.",
        default=False,
        applies=_of_format("number_lines")
        & only_without("id_column").otherwise("is given together with --id-column", "pass one of them"),
        group="Data",
    )
    header: bool = option(
        "Read the first line as the names of the columns.", default=True, applies=_of_format("header"), group="Data"
    )
    query_column: str | None = option(
        "Column of the queries, by name.",
        default=None,
        applies=_of_format("query_column"),
        hidden_default="a column with a usual name, as query, anchor or question",
        group="Data",
    )
    positive_column: str | None = option(
        "Column of the texts that are relevant to the query, by name.",
        default=None,
        applies=_of_format("positive_column"),
        hidden_default="a column with a usual name, as positive, answer or passage",
        group="Data",
    )
    negative_column: str | None = option(
        "Column of the hard negatives, by name.",
        default=None,
        applies=_of_format("negative_column"),
        hidden_default="all columns with usual names, as negative, negative_1 or neg",
        group="Data",
    )
    dev_ratio: float | None = option(
        "Share of queries to hold out as dev, as in 0.1. The text of a query decides where it belongs.",
        default=None,
        minimum=0,
        maximum=1,
        applies=_of_format("dev_ratio"),
        shown=True,
        group="Data",
    )
    topic_field: str = option(
        "Field of a TREC topic to use as the query.",
        default="title",
        choices=("title", "description", "narrative"),
        applies=_of_format("topic_field"),
        group="Data",
    )
    passage_words: int = option(
        "Number of words per passage.", default=100, minimum=1, applies=_of_format("passage_words"), group="Data"
    )
    stride: int | None = option(
        "Number of words from the start of a passage to the start of the next.",
        default=None,
        minimum=1,
        applies=_of_format("stride"),
        hidden_default="--passage-words, so that passages do not overlap",
        group="Data",
    )
    force: bool = force_option()

    def check(self) -> None:
        if self.format == VECTORS and self.ids is None:
            raise UsageError("IDS", "is missing", None, "retrievo import vectors X.npy IDS.txt --output DIR")
        if self.format == VECTORS and self.encoding != "utf-8":
            raise UsageError("--encoding", "does not apply to vectors", "ids in UTF-8", "convert the file of ids")
        if self.output.absolute() == self.source.absolute():
            raise UsageError("--output", "is the source itself", "another folder")
        if self.stride is not None and self.stride > self.passage_words:
            raise UsageError(
                "--stride",
                f"found {self.stride}",
                f"at most --passage-words ({self.passage_words}); words would be lost",
            )


@verb(ImportConfig)
def import_dataset(config: ImportConfig) -> Manifest:
    """Imports a source and returns the manifest of the dataset folder.

    Raises: RetrievoError that names file and line of malformed data; UsageError for options that do not apply.
    """
    if config.format == VECTORS:
        return _import_vectors(config)
    from retrievo.data.importers.dataset import DatasetWriter
    from retrievo.data.importers.input_files import ImportSource
    from retrievo.support.artifact import Input, Output

    reader = importlib.import_module(FORMATS[config.format].reader)
    source = ImportSource(config.source, config.output, config.encoding)
    parts = reader.find(source)
    inputs = {"source": Input.of(config.source, source.files(parts))}
    output = Output(config.output, "dataset", config.record(), inputs, force=config.force)
    if finished := output.already_finished():
        return finished
    _note_unread_files(source, parts)
    with output.build():
        store = DatasetWriter(output, parts)
        with source.progress(parts):
            own = {name: getattr(config, name) for name in FORMATS[config.format].options}
            reader.read(parts, store, **own)
        manifest = output.finish(store.finish())
    _summary(config.source, config.output, manifest, store)
    return manifest


def _import_vectors(config: ImportConfig) -> Manifest:
    from retrievo.retrieval.embeddings import import_vectors

    assert config.ids is not None
    arrays = (config.source, config.ids)
    manifest = import_vectors(
        *arrays, config.output, role=config.role, similarity=config.similarity, force=config.force
    )
    facts = {"output": f"{config.output} ({manifest.stats['rows']:,} vectors of {manifest.stats['dim']} dimensions)"}
    following = f"retrievo search --index {config.output} --queries QUERY_EMBEDDINGS --output run.parquet"
    console.summary(f"imported {config.source}", facts, *([following] if config.role == "document" else []))
    return manifest


def _note_unread_files(source: ImportSource, parts: Sequence[Part]) -> None:
    used = {part.member for part in parts}
    left = [member.path for member in source.members if member not in used]
    if left:
        console.note(f"not read: {_few(left)}")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _summary(source: Path, output: Path, manifest: Manifest, store: DatasetWriter) -> None:
    """Prints the rows read from each file, their columns, and the next command."""
    facts: dict[str, object] = {}
    found = store.found
    if len(found) <= _SHOWN:
        facts = {part.member.path: _counted(counts) for part, counts in found.items()}
    total: Counter[str] = sum(found.values(), Counter())
    facts["together"] = f"{_counted(total)}; files: {len(found):,}"
    facts |= _columns(store.columns)
    facts["output"] = f"{output} in {console.seconds(manifest.seconds or 0.0)}"
    console.summary(f"imported {source}", facts, *_next_commands(output, manifest))


def _columns(columns: Sequence[ColumnsRead]) -> dict[str, str]:
    """Which columns were read and which were ignored, for formats with columns."""
    if not columns:
        return {}
    taken = dict.fromkeys(", ".join(f"{what}: {name}" for what, name in read.taken.items()) for read in columns)
    facts = {"columns": _few(list(taken))}
    ignored = list(dict.fromkeys(name for read in columns for name in read.ignored))
    if ignored:
        name = ignored[0] if len(ignored) == 1 else "NAME"
        untitled = any(read.lacks_title for read in columns)
        facts["ignored"] = _few(ignored) + (f" (for titles: --title-column {shlex.quote(name)})" if untitled else "")
    return facts


def _next_commands(output: Path, manifest: Manifest) -> Iterator[str]:
    """What people do with such a dataset: train on pairs, index a corpus; nothing with queries or judgments alone."""
    folder, made = shlex.quote(str(output)), manifest.stats
    if manifest.config["format"] == "pairs" and "train" in made.get("qrels", {}):
        tables = [f"{folder}/negatives/{shlex.quote(name)}.parquet" for name in made.get("negatives", {})]
        negatives = f" --negatives {' '.join(tables)}" if tables else ""
        yield f"retrievo train --model MODEL --data {folder}{negatives} --output {folder}/model"
    elif (output / "corpus.parquet").exists():
        yield f"retrievo index --data {folder} --output {folder}/bm25"


def _counted(counts: Counter[str]) -> str:
    return "; ".join(f"{noun}: {count:,}" for noun, count in counts.items()) or "nothing"
