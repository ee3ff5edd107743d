"""`retrievo pseudo-label`: judgments and negatives for unjudged queries, from a cross-encoder's scores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.data.options import corpus_option, force_option, output_option, queries_option
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.values import Values
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.mining.candidates import Judged
    from retrievo.mining.pseudo_labels import Tally
    from retrievo.support.artifact import Input, Manifest, Output

LOGITS, PROBABILITIES = "logits", "probabilities"
JUDGMENTS, NEGATIVES = "qrels.parquet", "negatives.parquet"


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(Options):
    """Options of `retrievo pseudo-label`."""

    run: Path = option("Run with a cross-encoder's scores, as from retrievo rerank.", group="Data")
    qrels: Path | None = option(
        "Existing relevance judgments. Queries with judgments keep the judgments and get no pseudo-labels.",
        default=None,
        shown=True,
        group="Data",
    )
    corpus: Path | None = corpus_option(default=None, hidden_default="the one named in the run's manifest")
    queries: Path | None = queries_option(default=None, hidden_default="the one named in the run's manifest")
    output: Path = output_option(f"Folder to write. It gets {JUDGMENTS} and {NEGATIVES}.")
    positive_above: float = option(
        "Probability above which a document becomes a positive.",
        default=0.9,
        minimum=0,
        maximum=1,
        shown=True,
        group="Negatives",
    )
    negative_below: float = option(
        "Probability below which a document becomes a negative.",
        default=0.1,
        minimum=0,
        maximum=1,
        shown=True,
        group="Negatives",
    )
    scores: str | None = option(
        "Unit of the run's scores. A sigmoid turns logits into probabilities; rerank --activation sigmoid writes "
        "probabilities.",
        default=None,
        choices=(LOGITS, PROBABILITIES),
        hidden_default="as in the run's manifest, else guessed from the range of the scores",
        group="Negatives",
    )
    force: bool = force_option()

    def check(self) -> None:
        if self.negative_below > self.positive_above:
            expected = f"at most --positive-above ({self.positive_above:g})"
            raise UsageError("--negative-below", f"found {self.negative_below:g}", expected)
        if (self.corpus is None) != (self.queries is None):
            raise UsageError("--corpus", "goes with --queries", "both or none")


@verb(PseudoLabelConfig)
def pseudo_label(config: PseudoLabelConfig) -> Manifest:
    """Labels the queries of the run that --qrels does not judge, or finds the output finished.

    Existing judgments are kept. Of several processes, only the lead one works. A document that is the query itself gets
    no label, provided that the texts are known from the run's manifest or from the options.
    Raises: RetrievoError for a run that can't be read, scores of the wrong kind, and where no query gets a label.
    """
    from retrievo.data.origin import QUERIES, origins, warn_of_other_judgments
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.support.artifact import Output

    run, qrels = Run.open(config.run), Qrels.read(config.qrels) if config.qrels else None
    if qrels:
        warn_of_other_judgments(qrels.input, config.run, origins(config.run, QUERIES))
    recorded = _recorded(config.run)
    config = dataclasses.replace(config, scores=_unit(config.scores, run, recorded))
    texts, read = _texts(config.corpus, config.queries, recorded)
    inputs = {"run": run.input} | ({"qrels": qrels.input} if qrels else {}) | read
    output = Output(config.output, "labels", config.record(), inputs, force=config.force)
    if not console.is_lead():
        return output.manifest({})
    if finished := output.already_finished():
        return finished
    with output.build() as folder:
        manifest = output.finish(_write(config, run, qrels, texts, folder, output))
    _summary(config, manifest)
    return manifest


def _recorded(run: Path) -> Manifest | None:
    """The manifest of a run; None for a run that retrievo did not make."""
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    try:
        return Manifest.read(run, "run")
    except RetrievoError:
        return None


def _unit(given: str | None, run: Run, recorded: Manifest | None) -> str:
    """The unit of the scores: as the run's manifest or the user states it, or a guess with a warning.

    Raises: RetrievoError where they are not a cross-encoder's scores, or have another unit than the user states.
    """
    import pyarrow.compute as pc

    from retrievo.support.errors import RetrievoError

    known = recorded.stats.get("scores") if recorded else None
    if known is not None and known != (given or known):
        raise RetrievoError("--scores", f"found {given}", f"{known}, as {run.path} says", "leave --scores out")
    if known not in (None, LOGITS, PROBABILITIES):
        raise RetrievoError(run.path, f"holds {known}", "scores of a cross-encoder", "retrievo rerank --model RANKER")
    if unit := known or given:
        return unit
    bounds = [pc.min_max(batch["score"]).as_py() for batch in run.batches() if batch.num_rows]
    low, high = min((b["min"] for b in bounds), default=0.0), max((b["max"] for b in bounds), default=0.0)
    unit = PROBABILITIES if 0 <= low <= high <= 1 else LOGITS
    other = LOGITS if unit == PROBABILITIES else PROBABILITIES
    console.warn(
        f"{run.path} does not say what its scores are; they lie between {low:g} and {high:g} and are taken for "
        f"{unit}: pass --scores {unit}, or {other}"
    )
    return unit


def _texts(
    corpus: Path | None, queries: Path | None, recorded: Manifest | None
) -> tuple[Judged | None, dict[str, Input]]:
    """Reads queries and corpus, to find documents that are queries themselves; returns them and their inputs."""
    import pyarrow as pa

    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.ordering import flat_strings
    from retrievo.mining.candidates import Judged
    from retrievo.support.errors import RetrievoError

    given = {"corpus": corpus, "queries": queries}
    try:
        if corpus is None and recorded and given.keys() <= recorded.inputs.keys():
            given = {name: recorded.input_path(name, f"--{name}") for name in given}
    except RetrievoError as error:
        console.warn(str(error))
    if given["corpus"] is None or given["queries"] is None:
        console.warn(
            "texts are not known, so a document that is the query itself may become relevant: pass --corpus C "
            "--queries Q"
        )
        return None, {}
    documents, asked = Corpus(given["corpus"]), Queries(given["queries"])
    none = pa.table({"query_id": pa.array([], pa.string()), "doc_id": pa.array([], pa.string())})
    texts = Judged(documents, flat_strings(asked.ids), asked.texts, none)
    return texts, {"corpus": documents.input, "queries": asked.input}


def _write(
    config: PseudoLabelConfig, run: Run, qrels: Qrels | None, texts: Judged | None, folder: Path, output: Output
) -> Values:
    """Writes both tables, with the existing judgments before the labels; returns the stats for the manifest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings
    from retrievo.data.tables import NEGATIVES as COLUMNS
    from retrievo.data.tables import QRELS, TableWriter
    from retrievo.mining.pseudo_labels import Bounds, Tally, label

    tally, bounds = Tally(), Bounds.of(config.positive_above, config.negative_below, logits=config.scores == LOGITS)
    judged = pc.unique(flat_strings(qrels.table["query_id"])) if qrels else pa.array([], pa.large_string())
    with (
        TableWriter(folder / JUDGMENTS, QRELS.arrow) as judgments,
        TableWriter(folder / NEGATIVES, COLUMNS.arrow) as negatives,
    ):
        if qrels:
            judgments.write(qrels.table)
        for block in run.whole_queries():
            labels = label(run, block, bounds, judged, tally, texts)
            judgments.write(labels.positives)
            negatives.write(labels.negatives)
        _check(run.path, tally, config.scores, config.positive_above)
        stats = _stats(tally, len(qrels.table) if qrels else 0)
        output.record(JUDGMENTS, judgments.close())
        output.record(NEGATIVES, negatives.close(dataclasses.replace(output.manifest(stats), kind="negatives")))
    return stats


def _check(run: Path, tally: Tally, scores: str | None, positive_above: float) -> None:
    """Raises RetrievoError where the scores contradict --scores, and where no query was labeled."""
    from retrievo.support.errors import RetrievoError

    found = f"its scores lie between {tally.lowest:g} and {tally.highest:g}"
    if scores == PROBABILITIES and (tally.lowest < 0 or tally.highest > 1):
        raise RetrievoError(run, found, "0 to 1", "pass --scores logits, or rerank with --activation sigmoid")
    if not tally.labeled:
        found = (
            f"no query gets a label: {tally.judged:,} are judged, {tally.unsure:,} have no document above "
            f"{positive_above:g}"
        )
        raise RetrievoError(run, found, None, "lower --positive-above, or label other queries")


def _stats(tally: Tally, judgments: int) -> Values:
    hidden = ("lowest", "highest", *(("query_text",) if not tally.query_text else ()))
    counts = {name: value for name, value in vars(tally).items() if name not in hidden}
    return {**counts, "judgments": judgments}


def _summary(config: PseudoLabelConfig, manifest: Manifest) -> None:
    stats, above = manifest.stats, f"{config.positive_above:g}"
    facts = {
        "output": f"{config.output} ({stats['labeled']:,} of {stats['queries']:,} queries labeled)",
        "positives": f"{stats['positives']:,} ({stats['positives'] / stats['labeled']:.1f} for each labeled query)",
        "negatives": f"{stats['negatives']:,} ({stats['without_negatives']:,} labeled queries have none)",
        "left out": f"{stats['judged']:,} judged queries, {stats['unsure']:,} without a document above {above}",
        **({"query-text": f"{found:,} documents are their query"} if (found := stats.get("query_text")) else {}),
        **({"joined": f"{stats['judgments']:,} judgments of {config.qrels}"} if config.qrels else {}),
        "took": console.seconds(manifest.seconds or 0.0),
    }
    tables = f"--qrels {config.output / JUDGMENTS} --negatives {config.output / NEGATIVES}"
    console.summary("labeled", facts, f"retrievo train ... {tables}")
