"""`retrievo evaluate`: score runs against judgments, and say which differences are more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import (
    corpus_option,
    data_option,
    force_option,
    min_relevance_option,
    of_data,
    output_option,
    qrels_option,
    seed_option,
    split_option,
)
from retrievo.evaluation.names import CONVENTIONS, DEFAULT_CONVENTION, DEFAULT_METRICS, STYLES, Metric, Rules
from retrievo.support import console
from retrievo.support.conditions import only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.publishing import is_manifest_beside, manifest_beside

if TYPE_CHECKING:
    import pyarrow as pa

    from retrievo.data.origin import Origin
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.answers import Answers
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.judged_run import Judgments
    from retrievo.evaluation.scoring import Standard
    from retrievo.support.artifact import Input


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Options of `retrievo evaluate`."""

    run: tuple[Path, ...] = option(
        "Runs to evaluate. Formats are Parquet, TREC and MS MARCO.", default=(), several=True, shown=True, group="Data"
    )
    data: Path | None = data_option("qrels", applies=only_without("suite") & only_without("known_item"))
    split: str | None = split_option()
    qrels: Path | None = qrels_option(default=None, shown=True)
    metrics: tuple[str, ...] = option(
        "Metrics with cutoffs, as in mrr@10.",
        default=DEFAULT_METRICS,
        several=True,
        check=Metric.parse,
        shown=True,
        group="Metrics",
    )
    baseline: Path | None = option(
        "Run to compare the others with. The tests are a paired t-test and a randomization test.",
        default=None,
        shown=True,
        group="Metrics",
    )
    reference_run: Path | None = option(
        "First-stage run that the metric nb-recall-n@k compares with.", default=None, group="Metrics"
    )
    convention: str = option(
        "Evaluation rules of published results for ties, missing queries and documents that are the query itself. "
        "The conventions are " + "; ".join(f"{name} = {row.help}" for name, row in CONVENTIONS.items()) + ".",
        default=DEFAULT_CONVENTION,
        choices=tuple(CONVENTIONS),
        group="Metrics",
    )
    missing: str | None = option(
        "Treatment of judged queries that a run lacks. zero counts a missing query as 0, skip ignores it.",
        default=None,
        choices=("zero", "skip"),
        hidden_default="as in the convention",
        group="Metrics",
    )
    exclude_self: bool | None = option(
        "Drop rows whose document id equals the query id, as in ArguAna and Quora.",
        default=None,
        hidden_default="as in the convention",
        group="Metrics",
    )
    min_relevance: int = min_relevance_option()
    answers: Path | None = option(
        "Answers for the metric answer-recall@k. A table with the columns query_id and answers, or a query table with "
        "a column of answers.",
        default=None,
        group="Metrics",
    )
    corpus: Path | None = corpus_option(
        default=None,
        affects_output=False,
        applies=only_without("suite"),
        hidden_default="the one that the runs were made from",
    )
    per_query: Path | None = output_option(
        "Parquet file to write the value of every query and metric to.", default=None
    )
    report: Path | None = output_option(
        "HTML file to write a report with tables, charts and single queries to. An existing report is replaced.",
        default=None,
        affects_output=False,
        shown=True,
    )
    changed: int | None = option(
        "Number of queries to show, per compared run, that changed most in the first metric.",
        default=None,
        minimum=0,
        affects_output=False,
        applies=only_without("suite") & only_without("known_item"),
        hidden_default="10 where one run is compared, none where several are",
        group="Output",
    )
    seed: int = seed_option("randomization test, bootstrap")
    format: str = option(
        "Format of the printed table.", default="table", choices=STYLES, affects_output=False, group="Output"
    )
    json: bool = option("Print JSON, as --format json does.", default=False, affects_output=False, group="Output")
    force: bool = force_option()

    @property
    def rules(self) -> Rules:
        """Those of the convention, with what was said otherwise."""
        rules = CONVENTIONS[self.convention].rules
        missing = rules.missing if self.missing is None else self.missing
        exclude_self = rules.exclude_self if self.exclude_self is None else self.exclude_self
        return replace(rules, missing=missing, exclude_self=exclude_self)

    @property
    def style(self) -> str:
        """How the numbers are printed."""
        return "json" if self.json else self.format

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, "qrels", split=self.split)

    def check(self) -> None:
        if any(Metric.parse(name).needs_reference for name in self.metrics) and self.reference_run is None:
            raise UsageError(
                "--metrics", "nb-recall compares two runs", None, "pass the first one with --reference-run"
            )
        if any(Metric.parse(name).needs_answers for name in self.metrics) and self.answers is None:
            raise UsageError("--metrics", "answer-recall needs answers", None, "pass their table with --answers")
        if self.report is not None and self.report.suffix not in (".html", ".htm"):
            raise UsageError("--report", f"found '{self.report}'", "a file that ends in .html")
        if self.per_query is not None and self.per_query.suffix != ".parquet":
            raise UsageError("--per-query", f"found '{self.per_query}'", "a file that ends in .parquet")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Scores every run with every metric; with a baseline, tests each difference.

    Raises: RetrievoError for unreadable runs or qrels; UsageError where no run is given.
    """
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.comparison import run_names

    _check_given(config)
    given = (path for path in config.run if not is_manifest_beside(path))  # `--run runs/*` finds them too
    paths = list(dict.fromkeys([*given, *([config.baseline] if config.baseline else [])]))
    if paths == [config.baseline]:
        console.warn("--baseline: is the only run; nothing is compared")
    runs = [Run.open(path) for path in paths]
    names = run_names(paths, [run.name for run in runs])
    baseline = names[paths.index(config.baseline)] if config.baseline else None
    qrels = None if config.qrels is None else Qrels.read(config.qrels)
    return measured(config, dict(zip(names, runs, strict=True)), qrels, baseline)


def measured(
    config: EvaluateConfig, given: Mapping[str, Run | pa.Table], qrels: Qrels | pa.Table | None, baseline: str | None
) -> Evaluation:
    """Scores runs that are open or in memory; of `config` everything counts but its run, qrels and baseline.

    given: name -> run; baseline: one of the names.
    """
    from retrievo.data.run import Run
    from retrievo.evaluation.comparison import Evaluation
    from retrievo.evaluation.notes import notes
    from retrievo.evaluation.texts import Texts

    runs = [run for run in given.values() if isinstance(run, Run)]
    _warn_of_pairs(config, runs)
    standard, inputs = _standard(config, runs, qrels)
    metrics = {typed: Metric.parse(typed) for typed in config.metrics}
    evaluation = Evaluation.of(metrics, standard, given, Texts.of(runs, config.corpus), baseline, config.seed)
    evaluation = replace(evaluation, notes=tuple(notes(evaluation, config.convention)))
    for line in evaluation.notes:
        console.note(line)
    if config.report:
        judge = config.qrels or config.answers or config.reference_run
        _write_report(config.report, evaluation, f"{', '.join(evaluation.runs)} on {judge}")
    if config.per_query:
        _write_per_query(config, evaluation, {name: run.input for name, run in given.items()} | inputs)
    return evaluation


def _check_given(config: EvaluateConfig) -> None:
    if not config.run:
        either = "--run FILE, made by retrievo search; or --model M --data D, which makes the run too"
        raise UsageError("--run", "no run to score", None, _named(_here(_is_run), either))
    if config.qrels is None and any(Metric.parse(typed).needs_qrels for typed in config.metrics):
        fix = _named(_qrels_here(), "--qrels FILE or a dataset folder")
        raise UsageError("--qrels", "no judgments to score against", None, fix)


def _warn_of_pairs(config: EvaluateConfig, runs: Sequence[Run]) -> None:
    """Warns where runs are not comparable, as far as their manifests tell.

    Raises: RetrievoError where answers would be searched for in the texts of another corpus.
    """
    from retrievo.data.origin import CORPUS, QUERIES, fits, named, origins

    paths = [run.path for run in runs] + ([config.reference_run] if config.reference_run else [])
    for noun in (CORPUS, QUERIES):
        known = [(path, found) for path in paths if (found := origins(path, noun))]
        for path, found in known[1:]:
            if not fits(noun, found, known[0][1]):
                first = f"{known[0][0]} of {named(known[0][1])}"
                console.warn(f"{path}: is a run of another {noun} ({named(found)}) than {first}".replace(*_PLURAL))
        if noun == CORPUS and config.corpus is not None:
            for path, found in known:
                _check_corpus(config.corpus, path, found, searched=config.answers is not None)
    for run in runs:
        depth = _depth(run)
        deeper = [typed for typed in config.metrics if depth and (Metric.parse(typed).cutoff or 0) > depth]
        if deeper:
            console.warn(f"{run.path}: was made to depth {depth:,}, less than {', '.join(deeper)} needs")


_PLURAL = ("another queries", "other queries")


def _check_corpus(corpus: Path, run: Path, found: Sequence[Origin], *, searched: bool) -> None:
    """Warns where --corpus is not the corpus of a run.

    searched: whether answers are searched for in its texts.
    Raises: RetrievoError where they are.
    """
    from retrievo.data.finding import table_files
    from retrievo.data.origin import CORPUS, Origin, mixes_corpora, named, part_of
    from retrievo.support.artifact import Input
    from retrievo.support.errors import RetrievoError

    given = Input.of(corpus, table_files(corpus, CORPUS))
    if part_of(found, [Origin.of(CORPUS, given)]) and not mixes_corpora(run):
        return
    problem = f"is another corpus than {run} was made from ({named(found)})"
    if searched:
        raise RetrievoError(corpus, problem, None, "pass that one to --corpus, or leave it out")
    console.warn(f"{corpus}: {problem}; the texts may be those of other documents")


def _depth(run: Run) -> int | None:
    """The depth to which a run was made, by its manifest; None where it is not known."""
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    try:
        depth = Manifest.read(run.path).config.get("depth")
    except RetrievoError:
        return None
    return depth if isinstance(depth, int) else None


def _standard(
    config: EvaluateConfig, runs: Sequence[Run], qrels: Qrels | pa.Table | None
) -> tuple[Standard, dict[str, Input]]:
    """The standard for scoring the runs, and the files that it was read from."""
    from retrievo.data.origin import QUERIES, origins, warn_of_other_judgments
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.evaluation.judged_run import JudgedRun, Judgments
    from retrievo.evaluation.scoring import Standard, depth_needed

    metrics = tuple(dict.fromkeys(Metric.parse(typed) for typed in config.metrics))
    inputs, judgments, reference = {}, Judgments.of(None), None
    if isinstance(qrels, Qrels):
        inputs["qrels"], judgments = qrels.input, Judgments.of(qrels.table)
        for run in runs:
            warn_of_other_judgments(qrels.input, run.path, origins(run.path, QUERIES))
    elif qrels is not None:
        judgments = Judgments.of(qrels)
    if qrels is not None and judgments.grade.max(initial=0) < config.min_relevance:
        console.warn(f"{config.qrels or 'qrels'}: no judgment reaches --min-relevance {config.min_relevance}")
    if config.reference_run is not None:
        first = Run.open(config.reference_run)
        depth = depth_needed(metrics, of_reference=True)
        inputs["reference_run"] = first.input
        reference = JudgedRun.of(first, Judgments.of(None), depth=depth, name="reference run")
    answers = None
    if any(metric.needs_answers for metric in metrics):
        assert config.answers is not None
        answers = _answers(config.answers, config.corpus, runs, judgments, inputs)
    return Standard(metrics, judgments, config.rules, config.min_relevance, reference, answers), inputs


def _answers(
    given: Path, texts: Path | None, runs: Sequence[Run], judgments: Judgments, inputs: dict[str, Input]
) -> Answers:
    """Reads the answers, and the corpus from which the runs were made where no texts are given."""
    from retrievo.data.corpus import Corpus
    from retrievo.data.origin import QUERIES, origins, warn_of_other_judgments
    from retrievo.data.tables import ANSWERS, Table
    from retrievo.evaluation.answers import Answers
    from retrievo.evaluation.texts import corpus_of

    path = texts or corpus_of(runs)
    if path is None:
        raise UsageError("--answers", "no texts to look for answers in", None, "pass --corpus")
    beside = given / "queries.parquet"  # of a dataset whose queries carry their answers
    alone = beside.is_file() and not (given / "answers.parquet").is_file()
    table, corpus = Table(beside if alone else given, ANSWERS), Corpus(path)
    inputs |= {"answers": table.input, "corpus": corpus.input}
    if any(file.name == "queries.parquet" for file in table.files):  # a table of answers alone has no texts to compare
        for run in runs:
            warn_of_other_judgments(table.input, run.path, origins(run.path, QUERIES))
    return Answers.read(table, corpus, judgments.query_ids)


def _write_report(path: Path, evaluation: Evaluation, title: str) -> None:
    """Writes the report, replacing an earlier one, which can always be made again."""
    from retrievo.evaluation.report import report
    from retrievo.support.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(report(evaluation, title), encoding="utf-8")
    console.note(f"wrote {path}")


def _write_per_query(config: EvaluateConfig, evaluation: Evaluation, inputs: dict[str, Input]) -> None:
    """Writes one row per run and query, as a table with its manifest."""
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


def _named(here: Sequence[Path], otherwise: str) -> str:
    """The next step of an error message: a list of suitable files, if there are any."""
    return f"pass one of: {', '.join(map(str, here[:5]))}" if here else f"pass {otherwise}"


def _here(wanted: Callable[[Path], bool]) -> list[Path]:
    """Matching files and folders in the working folder and one level below."""
    return [path for path in sorted([*Path().glob("*"), *Path().glob("*/*")]) if wanted(path)]


def _qrels_here() -> list[Path]:
    """Files of judgments nearby; of a folder of splits the files, since the folder itself is not one table."""
    from retrievo.data.tables import QRELS

    noun = QRELS.noun
    found = _here(lambda path: path.name.startswith(noun) if path.is_file() else path.name == noun)
    return [file for path in found for file in ([path] if path.is_file() else sorted(path.glob("*.*")))]


def _is_run(path: Path) -> bool:
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    if path.suffix in (".trec", ".run"):
        return True
    try:
        carries = path.suffix == ".parquet" or manifest_beside(path).is_file()
        return carries and Manifest.read(path).kind == "run"
    except RetrievoError:
        return False
