"""The options of one data set to train on (standard library only, since option tables read this)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrievo.data.options import (
    OF_DATA,
    check_tables,
    corpus_option,
    data_option,
    of_data,
    qrels_option,
    queries_option,
    split_option,
)
from retrievo.support.conditions import only_with, only_without
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.options import Options, option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to, resolve
from retrievo.training.losses.losses import BATCH_TAUGHT, TAUGHT
from retrievo.training.objectives.table import DENSE

STAGE_SETTINGS = "train.toml"
TABLES = ("corpus", "queries", "qrels")
_DENSE, _WITHOUT_FIXED = only_with("kind", DENSE), only_without("document_embeddings")


@dataclass(frozen=True, kw_only=True)
class DataSetConfig(Options):
    """The tables of a data set, its negatives and teachers, and the prefixes of its texts."""

    data: Path | None = data_option("corpus", "queries", "qrels")
    split: str = split_option("train")
    corpus: Path = corpus_option(default=None, hidden_default=OF_DATA)
    queries: Path = queries_option(default=None, hidden_default=OF_DATA)
    qrels: Path = qrels_option(
        default=None,
        help="Relevance judgments to train on.",
        split="training split",
        hidden_default="the --split of --data",
    )
    negatives: tuple[Path, ...] = option(
        "Hard negatives, as from retrievo mine-negatives. Several tables are joined.",
        default=(),
        several=True,
        shown=True,
        applies=_WITHOUT_FIXED,
        group="Data",
    )
    teacher: Path | None = option(
        "Run whose scores are distilled into the model, such as one of a cross-encoder.",
        default=None,
        applies=_WITHOUT_FIXED & only_with("loss", *TAUGHT),
        group="Loss",
    )
    batch_teacher: tuple[Path, ...] = option(
        "Two embeddings folders of a teacher model, of the corpus and of the queries. Inner products of the two are "
        "the teacher's scores of all documents of the batch.",
        default=(),
        several=True,
        applies=_WITHOUT_FIXED & only_with("loss", *BATCH_TAUGHT),
        group="Loss",
    )
    query_clusters: Path | None = option(
        "Embeddings of the queries, which are clustered so that each batch holds similar queries (TAS).",
        default=None,
        applies=_DENSE & _WITHOUT_FIXED,
        hidden_default="random batches",
        group="Batch",
    )
    query_prefix: str | None = option(
        "Text that is put before each query.",
        default=None,
        hidden_default="the model's own",
        applies=_DENSE,
        group="Model",
    )
    document_prefix: str | None = option(
        "Text that is put before each document.",
        default=None,
        hidden_default="the model's own",
        applies=_DENSE & _WITHOUT_FIXED,
        group="Model",
    )

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, *TABLES, split=self.split)

    def check(self) -> None:
        super().check()
        check_tables(**{name: getattr(self, name) for name in TABLES})


def settings_of(path: Path) -> Path:
    """The TOML file of a data set; a dataset folder has none."""
    return path / STAGE_SETTINGS if path.is_dir() else path


def open_data_set(path: Path, beside: Collection[str] = ()) -> DataSetConfig:
    """The data set of a dataset folder (its training split), of a stage, or of a TOML file with a section [train].

    beside: options of training runs, which the section may have too; only those of `DataSetConfig` count.
    Raises: RetrievoError for a path that is none of these; UsageError for other keys, for a table that is not named,
    and for values of the wrong type.
    """
    settings = settings_of(path)
    if settings.is_file():
        return _of_file(settings, beside)
    judged = path / "qrels" / "train.parquet"
    if not judged.is_file():
        expected = f"a dataset folder with {judged.relative_to(path)}, a stage with {STAGE_SETTINGS}, or a TOML file"
        raise RetrievoError(path, "is no data set to train on", expected)
    return DataSetConfig(corpus=path, queries=path, qrels=judged)


def _of_file(settings: Path, beside: Collection[str]) -> DataSetConfig:
    section = read_toml(settings).get("train", {})
    known = {option.name: option for option in options_of(DataSetConfig)}
    for name in section:
        if name not in known and name not in beside:
            raise UsageError(settings, f"unknown key '{name}'", None, did_you_mean(name, known))
    for name in TABLES:
        if name not in section and "data" not in section:
            raise UsageError(settings, f"has no {name} in a section [train]", "corpus, queries and qrels")
    own = {name: value for name, value in section.items() if name in known}
    layer = Layer(str(settings), relative_to(settings.parent, DataSetConfig, own))
    return resolve(DataSetConfig, [layer]).config
