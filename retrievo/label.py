"""`retrievo label`: judgements and negatives for queries that nobody judged, from the scores of a cross-encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import force_option, output_option
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option

if TYPE_CHECKING:
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.retrieval.labelling import Tally
    from retrievo.support.artifact import Manifest, Output

LOGITS, PROBABILITIES = "logits", "probabilities"
JUDGEMENTS, NEGATIVES = "qrels.parquet", "negatives.parquet"


@dataclass(frozen=True, kw_only=True)
class LabelConfig(Options):
    """Options of `retrievo label`."""

    run: Path = option("Run with a cross-encoder's scores (retrievo rerank).")
    qrels: Path | None = option("Judgements that are there: their queries keep them and get no labels.", default=None)
    output: Path = output_option(f"Folder to make, with {JUDGEMENTS} and {NEGATIVES}.")
    positive_above: float = option(
        "Documents of a higher probability become relevant ones.", default=0.9, minimum=0, maximum=1
    )
    negative_below: float = option(
        "Documents of a lower probability become negatives.", default=0.1, minimum=0, maximum=1
    )
    scores: str = option(
        "What the run's scores are: logits, which a sigmoid turns into probabilities, or these themselves "
        "(rerank --activation sigmoid).",
        default=LOGITS,
        choices=(LOGITS, PROBABILITIES),
    )
    force: bool = force_option()

    def check(self) -> None:
        if self.negative_below > self.positive_above:
            expected = f"at most --positive-above ({self.positive_above:g})"
            raise UsageError("--negative-below", f"found {self.negative_below:g}", expected)


def label(config: LabelConfig) -> Manifest:
    """Labels the queries of the run that --qrels does not judge, or finds them labelled; judgements there are stay.

    Of several processes the lead one does all.
    Raises: RetrievoError for a run that can't be read, scores of the other kind, and where no query gets a label.
    """
    from retrievo.data.origin import QUERIES, origins, warn_of_other_judgements
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import Run
    from retrievo.support.artifact import Output

    run, qrels = Run.open(config.run), Qrels.read(config.qrels) if config.qrels else None
    if qrels:
        warn_of_other_judgements(qrels.input, config.run, origins(config.run, QUERIES))
    inputs = {"run": run.input} | ({"qrels": qrels.input} if qrels else {})
    output = Output(config.output, "labels", config.record(), inputs, force=config.force)
    if not console.is_lead():
        return output.manifest({})
    if finished := output.already_finished():
        return finished
    with output.build() as folder:
        manifest = output.finish(_write(config, run, qrels, folder, output))
    _summary(config, manifest)
    return manifest


def _write(config: LabelConfig, run: Run, qrels: Qrels | None, folder: Path, output: Output) -> dict[str, Any]:
    """Writes both tables, the judgements that are there before the labels; returns the figures."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrievo.data.ordering import flat_strings
    from retrievo.data.tables import NEGATIVES as COLUMNS
    from retrievo.data.tables import QRELS, TableWriter
    from retrievo.retrieval.labelling import Bounds, Tally, label

    tally, bounds = Tally(), Bounds.of(config.positive_above, config.negative_below, logits=config.scores == LOGITS)
    judged = pc.unique(flat_strings(qrels.table["query_id"])) if qrels else pa.array([], pa.large_string())
    with (
        TableWriter(folder / JUDGEMENTS, QRELS.arrow) as judgements,
        TableWriter(folder / NEGATIVES, COLUMNS.arrow) as negatives,
    ):
        if qrels:
            judgements.write(qrels.table)
        for block in run.whole_queries():
            labels = label(run, block, bounds, judged, tally)
            judgements.write(labels.positives)
            negatives.write(labels.negatives)
        _check(config, tally)
        stats = _stats(tally, len(qrels.table) if qrels else 0)
        output.record(JUDGEMENTS, judgements.close())
        output.record(NEGATIVES, negatives.close(dataclasses.replace(output.manifest(stats), kind="negatives")))
    return stats


def _check(config: LabelConfig, tally: Tally) -> None:
    """Raises RetrievoError where the scores are not what --scores says, and where nothing was labelled."""
    from retrievo.support.errors import RetrievoError

    found = f"its scores lie between {tally.lowest:g} and {tally.highest:g}"
    if config.scores == PROBABILITIES and (tally.lowest < 0 or tally.highest > 1):
        raise RetrievoError(config.run, found, "0 to 1", "pass --scores logits, or rerank with --activation sigmoid")
    if config.scores == LOGITS and 0 <= tally.lowest <= tally.highest <= 1:
        raise RetrievoError(config.run, found, "logits, some of them below 0", "pass --scores probabilities")
    if not tally.labelled:
        found = (
            f"no query gets a label: {tally.judged:,} are judged, {tally.unsure:,} have no document above "
            f"{config.positive_above:g}"
        )
        raise RetrievoError(config.run, found, None, "lower --positive-above, or label other queries")


def _stats(tally: Tally, judgements: int) -> dict[str, Any]:
    counts = {name: value for name, value in vars(tally).items() if name not in ("lowest", "highest")}
    return {**counts, "judgements": judgements}


def _summary(config: LabelConfig, manifest: Manifest) -> None:
    told, above = manifest.stats, f"{config.positive_above:g}"
    facts = {
        "made": f"{config.output} ({told['labelled']:,} of {told['queries']:,} queries labelled)",
        "positives": f"{told['positives']:,} ({told['positives'] / told['labelled']:.1f} for each labelled query)",
        "negatives": f"{told['negatives']:,} ({told['without_negatives']:,} labelled queries have none)",
        "left out": f"{told['judged']:,} judged queries, {told['unsure']:,} without a document above {above}",
        **({"joined": f"{told['judgements']:,} judgements of {config.qrels}"} if config.qrels else {}),
        "took": console.seconds(manifest.seconds or 0.0),
    }
    tables = f"--qrels {config.output / JUDGEMENTS} --negatives {config.output / NEGATIVES}"
    console.summary("labelled", facts, f"retrievo train ... {tables}")
