"""`retrievo evaluate --suite` and `--known-item`: evaluates a model and BM25 on whole datasets, from texts to metrics.

It composes commands: for each dataset index, encode, search and evaluate, all in one folder. Every step finds its own
finished output, so that a stopped sweep resumes where it was, and a repeated one computes only what is new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.commands.encode import EncodeConfig, encode
from retrievo.commands.evaluate import EvaluateConfig, evaluate
from retrievo.commands.index import IndexConfig, index
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.search.run import search
from retrievo.data.options import of_data, output_option, threads_option
from retrievo.models.compute import Computes
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option, model_option, revision_option
from retrievo.support import console
from retrievo.support.conditions import only_with, only_without
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import option
from retrievo.support.values import Values

if TYPE_CHECKING:
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.suite import Suite

BM25 = "bm25"
KNOWN_ITEMS = ("title", "span")
_MAKES_RUNS = only_without("run")  # options for making runs do not apply to existing runs


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Computes, EvaluateConfig):
    """Options of `retrievo evaluate`: those for runs, and those for whole datasets."""

    suite: Path | None = option(
        "Folder of dataset folders. The --model encodes, searches and is scored on each, beside BM25.",
        default=None,
        alternative="what",
        shown=True,
        group="Data",
    )
    known_item: str | None = option(
        "Known-item search, which needs no judgments. Queries are titles of documents of --corpus, or spans held out "
        "of documents.",
        default=None,
        choices=KNOWN_ITEMS,
        alternative="what",
        group="Data",
    )
    known_items: int = option(
        "Number of queries to make for --known-item.",
        default=1_000,
        minimum=1,
        applies=only_with("known_item"),
        group="Data",
    )
    model: str | None = model_option(default=None, applies=_MAKES_RUNS, shown=True)
    revision: str | None = revision_option(applies=_MAKES_RUNS)
    output: Path = output_option(
        "Folder for the indexes, embeddings and runs of --suite and --known-item.", Path("sweep"), applies=_MAKES_RUNS
    )
    depth: int = option(
        "Number of documents per query of --suite and --known-item.",
        default=1_000,
        minimum=1,
        applies=_MAKES_RUNS,
        group="Search",
    )
    exclude_self_of: tuple[str, ...] = option(
        "Datasets of --suite in which rows whose document id equals the query id are dropped.",
        default=(),
        several=True,
        applies=_MAKES_RUNS,
        group="Metrics",
    )
    dtype: str = dtype_option(applies=_MAKES_RUNS)
    chunk_tokens: int | str = chunk_tokens_option(applies=_MAKES_RUNS)
    device: str = device_option(applies=_MAKES_RUNS)
    threads: int | None = threads_option(applies=_MAKES_RUNS)

    @property
    def sweeps(self) -> bool:
        """Whether whole datasets are evaluated, and not existing runs."""
        return self.suite is not None or self.known_item is not None or self._of_one_dataset

    @property
    def _of_one_dataset(self) -> bool:
        return self.data is not None and self.model is not None and not self.run

    def recipe(self) -> Mapping[str, Any]:
        return {} if self._of_one_dataset else super().recipe()

    def check(self) -> None:
        super().check()
        if self.sweeps and (self.run or self.baseline or self.reference_run or self.qrels or self.answers):
            flag = "--model" if self._of_one_dataset else "--suite"
            raise UsageError(flag, "makes its own runs", "no --run, --baseline, --reference-run, --qrels, --answers")
        if self.sweeps and self.model is None:
            raise UsageError("--model", "no model to evaluate", None, "pass --model FOLDER or a hub name")
        if self.known_item and self.corpus is None:
            raise UsageError("--known-item", "no documents to ask for", None, "pass --corpus")
        if self.per_query is not None and self.sweeps:
            raise UsageError("--per-query", "is for runs that are there", None, "pass the runs below --output")


def evaluate_any(config: EvaluateConfig) -> Evaluation | Suite:
    """Scores existing runs, or those that it makes with a model (`--suite`, `--known-item`, `--data`)."""
    return sweep(config) if isinstance(config, SweepConfig) and config.sweeps else evaluate(config)


def sweep(config: SweepConfig) -> Suite:
    """Evaluates a model and BM25 on every dataset of the suite, on one dataset, or on known items of one corpus.

    Raises: RetrievoError for datasets that can't be read; UsageError for names that are not in the suite.
    """
    from retrievo.evaluation.suite import Suite
    from retrievo.support.files import atomic_path

    datasets = dict(_datasets(config))
    for name in config.exclude_self_of:
        if name not in datasets:
            raise UsageError("--exclude-self-of", f"found '{name}'", f"one of {', '.join(datasets)}")
    notes = _warnings(config.known_item)
    with console.inner_steps():
        found = {name: _evaluate(config, name, path) for name, path in datasets.items()}
    suite = Suite(found, notes)
    if config.report:
        title = f"{_label(config.model)} and BM25 on {config.suite or config.corpus or config.data}"
        with atomic_path(config.report) as temporary:
            temporary.write_text(suite.report(title), encoding="utf-8")
        console.note(f"wrote {config.report}")
    return suite


def _warnings(known_item: str | None) -> tuple[str, ...]:
    from retrievo.evaluation.known_item import WARNING

    if known_item is None:
        return ()
    console.warn(WARNING)
    return (WARNING,)


def _datasets(config: SweepConfig) -> Iterator[tuple[str, Path]]:
    """The datasets by name: one of known items, `--data`, or the folders of a suite, of which a dataset is one too."""
    from retrievo.data.corpus import Corpus
    from retrievo.evaluation.known_item import make_known_items

    if config.known_item is not None:
        assert config.corpus is not None
        name = f"known-item-{config.known_item}"
        path, options = config.output / name / "dataset", {"kind": config.known_item, "count": config.known_items}
        make_known_items(path, Corpus(config.corpus), seed=config.seed, force=config.force, **options)  # type: ignore[arg-type]
        yield name, path
        return
    if config.suite is None:
        assert config.data is not None
        yield _last_part(config.data), config.data
        return
    if not config.suite.is_dir():
        raise RetrievoError(config.suite, "no such folder", None, "check --suite")
    folders = [path for path in [config.suite, *sorted(config.suite.glob("*"))] if _is_dataset(path)]
    if not folders:
        expected = "folders with corpus.parquet, queries.parquet and qrels/test.parquet or dev.parquet"
        raise RetrievoError(config.suite, "holds no dataset", expected, "import them first: retrievo import --help")
    yield from ((_last_part(path), path) for path in folders)


def _is_dataset(path: Path) -> bool:
    tables = all((path / f"{noun}.parquet").is_file() for noun in ("corpus", "queries"))
    return tables and any(found for split in ("test", "dev") for found in (path / "qrels").glob(f"{split}*.parquet"))


def _last_part(path: Path | str) -> str:
    """The last part of a path or name, as typed, without following links."""
    return os.path.basename(os.path.abspath(path))


def _label(model: str | None) -> str:
    """The name of the model's runs."""
    label = _last_part(model or "")
    return f"{label}-model" if label == BM25 else label


def _evaluate(config: SweepConfig, name: str, dataset: Path) -> Evaluation:
    """Indexes, encodes, searches and evaluates one dataset."""
    from retrievo.data.finding import table_files

    console.note(f"{name}:")
    home, label, compute = config.output / name, _label(config.model), asdict(config.compute)
    machine: Values = {"threads": config.threads, "force": config.force}
    judged = of_data(dataset, "judged", split=config.split)["judged"]
    folder = "runs" if config.split is None else f"runs-{config.split}"
    runs = {run: home / folder / f"{run}.parquet" for run in (BM25, label)}
    asked: Values = {"queries": dataset, "judged": judged, "depth": config.depth}
    index(IndexConfig(type=BM25, corpus=dataset, output=home / BM25, **machine))
    search(SearchConfig(index=(home / BM25,), output=runs[BM25], **asked, **machine))
    assert config.model is not None
    vectors = home / f"embeddings-{label}"
    model: Values = {"model": config.model, "revision": config.revision}
    encode(EncodeConfig(corpus=dataset, output=vectors, force=config.force, **model, **compute))
    search(SearchConfig(index=(vectors,), output=runs[label], force=config.force, **asked, **compute))
    own = {spec.name: getattr(config, spec.name) for spec in fields(EvaluateConfig)}
    own |= {"run": tuple(runs.values()), "baseline": runs[BM25], "qrels": judged, "report": None, "corpus": dataset}
    own |= {"data": None, "split": None}
    if name in config.exclude_self_of:
        own["exclude_self"] = True
    evaluation = evaluate(EvaluateConfig(**own))
    split, judged_queries = table_files(judged, "qrels")[0].stem, len(evaluation.standard.judgments.query_ids)
    console.note(f"{name}: {judged_queries:,} judged queries of the split {split}; runs in {runs[BM25].parent}")
    return evaluation
