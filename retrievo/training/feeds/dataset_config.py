"""What one data set to train on is made of: option tables read this, so standard library only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, dataclass
from pathlib import Path

from retrievo.data.options import corpus_option, qrels_option, queries_option
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean
from retrievo.support.options import Options, option, options_of
from retrievo.support.settings import Layer, read_toml, relative_to, resolve
from retrievo.training.losses.losses import BATCH_TAUGHT, TAUGHT

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
    query_clusters: Path | None = option(
        "Embeddings of the queries, by which each batch is of queries that lie together (TAS).", default=None
    )
    query_prefix: str | None = option("Text put before each query.", default=None, hidden_default="as the model")
    document_prefix: str | None = option("Text put before each document.", default=None, hidden_default="as the model")


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
    for name, told in known.items():
        if told.default is MISSING and name not in section:
            raise UsageError(settings, f"has no {name} in a section [train]", "corpus, queries and qrels")
    own = {name: value for name, value in section.items() if name in known}
    layer = Layer(str(settings), relative_to(settings.parent, DataSetConfig, own))
    return resolve(DataSetConfig, [layer]).config
