"""What one data set to train on is made of: option tables read this, so standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retrievo.data.options import corpus_option, qrels_option, queries_option
from retrievo.learning.losses import BATCH_TAUGHT, TAUGHT
from retrievo.support.errors import RetrievoError
from retrievo.support.options import Options, option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to, resolve

STAGE_SETTINGS = "train.toml"


@dataclass(frozen=True, kw_only=True)
class DataSetConfig(Options):
    """The tables of a data set, and what stands before its texts."""

    corpus: Path = corpus_option()
    queries: Path = queries_option()
    qrels: Path = qrels_option()
    negatives: tuple[Path, ...] = option("Pools of hard negatives; several are joined.", default=(), several=True)
    teacher: Path | None = option(
        "Run whose scores teach, such as a cross-encoder's.", default=None, only={"loss": TAUGHT}
    )
    batch_teacher: tuple[Path, ...] = option(
        "Embeddings of the corpus and of the queries by a model whose scores teach on all documents of the batch.",
        default=(),
        several=True,
        only={"loss": BATCH_TAUGHT},
    )
    topics: Path | None = option(
        "Embeddings of the queries, by which each batch is of queries that lie together (TAS).", default=None
    )
    query_prefix: str | None = option("Text put before each query.", default=None, hidden_default="as the model")
    document_prefix: str | None = option("Text put before each document.", default=None, hidden_default="as the model")


def open_data_set(path: Path) -> DataSetConfig:
    """The data set of a dataset folder (its training split), of a stage, or of a TOML file with a section [train].

    Of the section only the options of `DataSetConfig` count.
    Raises: RetrievoError for a path that is none of these; UsageError for values of the wrong type.
    """
    settings = path / STAGE_SETTINGS if path.is_dir() else path
    if settings.is_file():
        known = {option.name for option in options_of(DataSetConfig)}
        section = {name: value for name, value in read_toml(settings).get("train", {}).items() if name in known}
        layer = Layer(str(settings), relative_to(settings.parent, DataSetConfig, section))
        return resolve(DataSetConfig, [layer]).config
    judged = path / "qrels" / "train.parquet"
    if not judged.is_file():
        expected = f"a dataset folder with {judged.relative_to(path)}, a stage with {STAGE_SETTINGS}, or a TOML file"
        raise RetrievoError(path, "is no data set to train on", expected)
    return DataSetConfig(corpus=path, queries=path, qrels=judged)
