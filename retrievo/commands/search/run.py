"""`retrievo search`: rank documents for a table of queries, or for a question that a person types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.commands.search.config import SearchConfig
from retrievo.commands.search.indexes import Sources, accompanied, find_sources
from retrievo.commands.search.queries import Asked, read_queries
from retrievo.models.splits import noted_splits
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.commands.search.interactive import Asker
    from retrievo.commands.search.pipeline import Pipeline
    from retrievo.data.run import RunWriter
    from retrievo.retrieval.search_results import Answer
    from retrievo.support.artifact import Input


@verb(SearchConfig)
def search(config: SearchConfig) -> Answer | None:
    """Writes a run for a table of queries, or returns the answer to a question.

    Raises: RetrievoError where index and queries do not fit; UsageError for options of another kind of index.
    """
    if config.interactive:
        fix = "ask an open index: retrievo.open_index(path).search([question])"
        raise UsageError("--interactive", "is for a person at a terminal", None, fix)
    return searched(config)


def searched(config: SearchConfig, *, alone: bool = False) -> Answer | None:
    """Writes a run for a table of queries, or returns the answer to a question.

    alone: by this process, where torchrun started others that do not call this; else every process calls it.

    Raises: RetrievoError where index and queries do not fit; UsageError for options of another kind of index.
    """
    sources = find_sources(config)
    with nullcontext(True) if alone else accompanied(config, sources.indexes) as leads:
        if leads and config.question is not None:
            return _asker(config, sources).answer(config.question)
        if leads:
            assert config.queries is not None
            _write_run(config, sources, read_queries(config.queries, config.judged))
    return None


def converse(config: SearchConfig, questions: Iterable[str]) -> Iterator[Answer]:
    """Answers to one question after another; everything is opened once, before the first.

    Raises: as `search`.
    """
    sources = find_sources(config)
    with accompanied(config, sources.indexes) as leads:
        if leads:
            asker = _asker(config, sources)
            yield from (asker.answer(question) for question in questions if question.strip())


def _asker(config: SearchConfig, sources: Sources) -> Asker:
    from retrievo.commands.search.interactive import Asker
    from retrievo.commands.search.pipeline import Pipeline

    return Asker(Pipeline(config, sources), sources, config.corpus)


def _write_run(config: SearchConfig, sources: Sources, asked: Asked) -> None:
    from retrievo.commands.search.pipeline import Pipeline
    from retrievo.data.origin import QUERIES, read_now, warn_of_other_judgments
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import RunWriter
    from retrievo.models.model_reference import model_record
    from retrievo.support.artifact import Input, Output

    assert config.output is not None
    assert asked.input is not None
    names = ["index"] if len(config.index) == 1 else [f"index-{n + 1}" for n in range(len(config.index))]
    indexes = {name: Input.of(path) for name, path in zip(names, config.index, strict=True)}
    runs = {f"run-{number}": Input.of(path) for number, path in enumerate(config.run, start=1)}
    qrels = {"qrels": config.tune_on, "judged": config.judged}
    judged = {name: Qrels.read(path).input for name, path in qrels.items() if path is not None}
    read = model_record(config.rerank, None)[1] if config.rerank else {}
    inputs = indexes | runs | judged | {"queries": asked.input} | ({"ranker": read["model"]} if read else {})
    inputs |= _corpora(config.places)
    for qrels_read in judged.values():
        warn_of_other_judgments(qrels_read, config.queries, read_now(QUERIES, asked.input))
    record = config.record() | {"depth": config.run_depth}
    output = Output(config.output, "run", record, inputs, force=config.force, single_file=True)
    if output.already_finished():
        return
    with output.build() as folder:
        with RunWriter(folder / config.output.name, format_of=config.output) as writer:
            with noted_splits() as splits, closing(Pipeline(config, sources)) as pipeline:
                stats = _write_hits(pipeline, asked, writer)
            stats |= splits.stats()
            writer.close(output.manifest(stats))
        output.finish(stats)
    facts = {"output": f"{config.output} ({stats['rows']:,} rows for {stats['queries']:,} queries)"}
    if stats["without_results"]:
        facts["empty"] = f"{stats['without_results']:,} queries found nothing"
    facts["took"] = console.seconds(output.elapsed)
    split = f" --split {config.split}" if config.split else ""
    judgments = f"--data {config.data}{split}" if config.data else f"--qrels {config.judged or 'QRELS'}"
    console.summary("searched", facts, f"retrievo evaluate --run {config.output} {judgments}")


def _corpora(places: Sequence[Path]) -> dict[str, Input]:
    """The corpora behind indexes and runs, for the manifest: who reads the run knows whose documents it ranks."""
    from retrievo.data.origin import CORPUS, origins
    from retrievo.support.artifact import Input

    found = {one.fingerprint: one for place in places for one in origins(place, CORPUS)}
    names = [CORPUS, *(f"{CORPUS}-{number}" for number in range(2, 1 + len(found)))]
    return {name: Input(one.path, one.fingerprint) for name, one in zip(names, found.values(), strict=False)}


def _write_hits(pipeline: Pipeline, asked: Asked, writer: RunWriter) -> dict[str, int]:
    import numpy as np

    from retrievo.data.columns import taken
    from retrievo.data.ordering import ranks

    rows = answered = 0
    for hits in pipeline.search(asked).hits():
        writer.write(taken(asked.ids, hits.query), hits.ids(), hits.score, ranks(hits.query))
        rows, answered = rows + len(hits.query), answered + len(np.unique(hits.query))
    return {"queries": len(asked.ids), "without_results": len(asked.ids) - answered, "rows": rows}
