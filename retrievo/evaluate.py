"""`retrievo evaluate`: score runs against judgements, and say which differences are more than chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.options import force_option, json_option, output_option, qrels_option
from retrievo.evaluation.names import DEFAULT_METRICS, Metric
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option

if TYPE_CHECKING:
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.metrics import PerQuery
    from retrievo.support.artifact import Input


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Options of `retrievo evaluate`."""

    run: tuple[Path, ...] = option("Runs to score: Parquet, TREC or MS MARCO files.", default=(), several=True)
    qrels: Path | None = qrels_option(default=None)
    metrics: tuple[str, ...] = option(
        "Metrics with their cutoffs, as in mrr@10.", default=DEFAULT_METRICS, several=True, check=Metric.parse
    )
    baseline: Path | None = option(
        "Run to compare the others with: paired t-test and randomization test.", default=None
    )
    reference_run: Path | None = option("First-stage run that nb-recall-n@k looks into.", default=None)
    missing: str = option(
        "Judged queries that a run lacks: zero counts them as 0 (trec_eval -c), skip leaves them out.",
        default="zero",
        choices=("zero", "skip"),
    )
    min_relevance: int = option("Lowest grade that counts as relevant.", default=1, minimum=1)
    exclude_self: bool = option("Drop rows whose document id equals the query id (ArguAna, Quora).", default=False)
    per_query: Path | None = output_option(
        "Write the value of every query and metric to this Parquet file.", default=None
    )
    seed: int = option("Seed of the randomization test.", default=0, minimum=0)
    json: bool = json_option()
    force: bool = force_option()

    def check(self) -> None:
        if any(Metric.parse(name).needs_reference for name in self.metrics) and self.reference_run is None:
            raise UsageError(
                "--metrics", "nb-recall compares two runs", None, "pass the first one with --reference-run"
            )
        if self.per_query is not None and self.per_query.suffix != ".parquet":
            raise UsageError("--per-query", f"found '{self.per_query}'", "a file that ends in .parquet")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Scores every run with every metric; with a baseline, tests each difference.

    Raises: RetrievoError for unreadable runs or qrels; UsageError where no run is given.
    """
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.comparison import Evaluation, run_names

    if not config.run:
        raise UsageError(
            "--run", "no run to score", None, _what_is_here(_is_run, "--run FILE, made by retrievo search")
        )
    if config.qrels is None:
        fix = _what_is_here(_is_qrels, "--qrels FILE or a dataset folder")
        raise UsageError("--qrels", "no judgements to score against", None, fix)
    paths = list(dict.fromkeys([*config.run, *([config.baseline] if config.baseline else [])]))
    runs = [Run.read(path) for path in paths]
    names = run_names(paths, [run.name for run in runs])
    qrels = Qrels.read(config.qrels)
    reference = Run.read(config.reference_run) if config.reference_run else None
    metrics = {typed: Metric.parse(typed) for typed in config.metrics}
    scored = {
        name: _score(run, qrels, reference, name, list(metrics.values()), config)
        for name, run in zip(names, runs, strict=True)
    }
    baseline = names[paths.index(config.baseline)] if config.baseline else None
    evaluation = Evaluation.of(metrics, scored, baseline, config.seed)
    evaluation.say_notes(config.missing)
    if config.per_query:
        inputs = {name: run.input for name, run in zip(names, runs, strict=True)} | {"qrels": qrels.input}
        _write_per_query(config, evaluation, inputs)
    return evaluation


def _score(
    run: Run, qrels: Qrels, reference: Run | None, name: str, metrics: list[Metric], config: EvaluateConfig
) -> PerQuery:
    from retrievo.evaluation import metrics as scoring

    return scoring.evaluate(
        run.table,
        qrels.table,
        metrics,
        min_relevance=config.min_relevance,
        missing=config.missing,
        exclude_self=config.exclude_self,
        reference=reference.table if reference else None,
        run_name=name,
    )


def _write_per_query(config: EvaluateConfig, evaluation: Evaluation, inputs: dict[str, Input]) -> None:
    """One row per run and query, as a table that carries its manifest."""
    from retrievo.data.tables import TableWriter
    from retrievo.support.artifact import Output

    assert config.per_query is not None
    output = Output(config.per_query, "measures", config.record(), inputs, force=config.force, single_file=True)
    if output.already_finished():
        return
    table = evaluation.table()
    with output.build() as folder, TableWriter(folder / config.per_query.name, table.schema) as writer:
        writer.write(table)
        writer.close(output.manifest({"rows": table.num_rows}))
        output.finish({"rows": table.num_rows})


def _what_is_here(wanted: Callable[[Path], bool], otherwise: str) -> str:
    """The files in the working folder that would do, for the error message."""
    here = [str(path) for path in sorted([*Path().glob("*"), *Path().glob("*/*")]) if wanted(path)]
    return f"pass one of: {', '.join(here[:5])}" if here else f"pass {otherwise}"


def _is_run(path: Path) -> bool:
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    if path.suffix in (".trec", ".run"):
        return True
    try:
        return path.suffix == ".parquet" and Manifest.read(path).kind == "run"
    except RetrievoError:
        return False


def _is_qrels(path: Path) -> bool:
    return path.name.startswith("qrels") if path.is_file() else path.name == "qrels"
