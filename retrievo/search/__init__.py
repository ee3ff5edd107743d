"""`retrievo search`: rank documents for a table of queries, or for a question that a person types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import (
    corpus_option,
    force_option,
    heap_option,
    json_option,
    memory_option,
    output_option,
    qrels_option,
    queries_option,
    threads_option,
)
from retrievo.data.run_files import check_run_suffix
from retrievo.evaluation.names import check_metric
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option
from retrievo.models.splits import noted_splits
from retrievo.retrieval.aggregation import AGGREGATIONS
from retrievo.retrieval.feedback import FEEDBACKS
from retrievo.retrieval.fusion import FUSIONS
from retrievo.search.plans import DEFAULT_FUSION, FUSED, FUSED_DEPTH, OWN, TABLE_DEPTH, Plan, plan
from retrievo.search.question import QUESTION_DEPTH, Asker
from retrievo.search.sources import (
    Source,
    accompanied,
    check_corpora,
    check_meaning,
    open_source,
    warn_of_changed_texts,
)
from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, flag_of, is_off, option

if TYPE_CHECKING:
    from retrievo.data.run import RunWriter
    from retrievo.retrieval.answer import Answer
    from retrievo.support.artifact import Input


_WITH_FEEDBACK = {"feedback": tuple(FEEDBACKS)}
_WITH_RM3 = {"rm3": ("True",)}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Options):
    """Options of `retrievo search`."""

    question: str | None = option("A question to answer at once.", default=None, positional=True, alternative="queries")
    interactive: bool = option(
        "Ask for one question after another; an empty line ends.", default=False, alternative="queries"
    )
    index: tuple[Path, ...] = option(
        "FAISS or BM25 index folder, or an embeddings folder (exact search without a copy); several are fused.",
        default=(),
    )
    run: tuple[Path, ...] = option("Runs to fuse with what the indexes find.", default=())
    queries: Path | None = queries_option(default=None, alternative="queries")
    judged: Path | None = option("Search only the queries that these judgements know.", default=None)
    output: Path | None = output_option(
        "Run file: .parquet, .trec, .txt or .run (TREC), .tsv (MS MARCO).", default=None
    )
    depth: int | None = option(
        "Documents per query.",
        default=None,
        minimum=1,
        hidden_default=f"{TABLE_DEPTH:,} for a table, {QUESTION_DEPTH} for a question",
    )
    fuse: str | None = option(
        "How the results of several indexes become one.",
        default=None,
        choices=tuple(FUSIONS),
        hidden_default=DEFAULT_FUSION,
    )
    fuse_weights: tuple[float, ...] = option(
        "Weight of each index, then of each run, in their order.", default=(), above=0, alternative="weights"
    )
    tune_on: Path | None = qrels_option(default=None, alternative="weights")
    tune_metric: str = option(
        "What weights are tuned for.", default="ndcg@10", check=check_metric, only={"tune_on": ()}
    )
    feedback: str | None = option(
        "Search dense indexes twice: the first documents move the query.", default=None, choices=tuple(FEEDBACKS)
    )
    feedback_depth: int = option("Documents that move a query.", default=3, minimum=1, only=_WITH_FEEDBACK)
    feedback_weight: float = option(
        "w of the documents.", default=0.5, minimum=0, maximum=1, only={"feedback": ("rocchio",)}
    )
    feedback_from: str = option(
        "Whose first documents: of each index by itself, or of the fusion.",
        default=OWN,
        choices=(OWN, FUSED),
        only=_WITH_FEEDBACK,
    )
    across_corpora: bool = option(
        "Rank documents of different corpora together; each hit tells its corpus, and its text is from there.",
        default=False,
        unless={"corpus": ()},
    )
    rerank: str | None = option(
        "Cross-encoder that gives the first documents their scores and their order: folder or hub name.",
        default=None,
        path_or_name=True,
        affects_output=False,
    )
    rerank_depth: int = option(
        "Documents of each query that --rerank scores: all that it keeps.", default=100, minimum=1, only={"rerank": ()}
    )
    doc_aggregate: str | None = option(
        "Turn passages into documents: by the best passage or the first.", default=None, choices=tuple(AGGREGATIONS)
    )
    doc_separator: str = option(
        "What stands between a document's id and the passage's number.",
        default="#",
        only={"doc_aggregate": tuple(AGGREGATIONS)},
    )
    k1: float | None = option("BM25: saturation of the term frequency.", default=None, minimum=0, hidden_default="0.9")
    b: float | None = option("BM25: length normalization.", default=None, minimum=0, maximum=1, hidden_default="0.4")
    language: str | None = option("BM25: analyzer of the queries.", default=None, hidden_default="the index's own")
    rm3: bool = option("BM25: search twice, the second time with words of the first documents.", default=False)
    rm3_documents: int = option("RM3: documents whose words are taken.", default=10, minimum=1, only=_WITH_RM3)
    rm3_words: int = option("RM3: words to take.", default=10, minimum=1, only=_WITH_RM3)
    rm3_weight: float = option(
        "RM3: weight of the query's own words.", default=0.5, minimum=0, maximum=1, only=_WITH_RM3
    )
    heap: str | None = heap_option()
    nprobe: int | None = option(
        "Lists that a search reads for each query, of ivf types.",
        default=None,
        minimum=1,
        hidden_default="1 / 32 of the lists, at least 8",
    )
    ef_search: int | None = option(
        "Candidates that a search follows in the graph, of hnsw.",
        default=None,
        minimum=1,
        hidden_default="128, or the candidates rescored",
    )
    rescore: int | None = option(
        "Candidates of an approximate index that get exact scores from the embeddings; 0 keeps the index's scores.",
        default=None,
        minimum=0,
        hidden_default="1 to 20 for each document, by type",
    )
    recall_target: float | None = option(
        "Tune all three on 200 of the queries against exact search, to this recall at --depth.",
        default=None,
        above=0,
        maximum=1,
    )
    memory: str | None = memory_option()
    batch_size: int | None = option(
        "Queries per scan of exact search.", default=None, minimum=1, affects_output=False, hidden_default="1,024"
    )
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option()
    device: str = device_option()
    threads: int | None = threads_option()
    corpus: Path | None = corpus_option(
        default=None, affects_output=False, hidden_default="the one the index was made from"
    )
    json: bool = json_option(unless={"queries": ()})
    force: bool = force_option()

    def check(self) -> None:
        if self.interactive:
            self._check_typed()
            return
        if self.question is None and self.queries is None:
            raise UsageError("search", "nothing to search for", "a QUESTION in quotes, or --queries and --output")
        if self.question is None and self.output is None:
            raise UsageError("--queries", "no place for the run", None, "pass --output FILE.parquet")
        if self.question is not None and not self.question.strip():
            raise UsageError("QUESTION", "is empty", "words to search for")
        if self.question is None and self.output is not None:
            check_run_suffix(self.output)
        self._check_searched()

    def _check_searched(self) -> None:
        """What tables and questions have in common."""
        self._check_fusion()
        self._check_effort()
        if self.rerank is not None and self.depth is not None and self.depth > self.rerank_depth:
            expected = f"at most --rerank-depth ({self.rerank_depth:,})"
            raise UsageError("--depth", f"found {self.depth:,}", expected, "raise --rerank-depth")

    def _check_typed(self) -> None:
        """What has no meaning for questions that are typed one by one."""
        if self.question is not None or self.queries is not None:
            raise UsageError("--interactive", "is given together with a question or --queries", "one of them")
        self._check_searched()

    def _check_effort(self) -> None:
        if self.recall_target is None:
            return
        if self.queries is None:
            raise UsageError("--recall-target", "needs queries to tune on", None, "pass --queries and --output")
        for name in ("nprobe", "ef_search", "rescore"):
            if getattr(self, name) is not None:
                flag = flag_of(name)
                raise UsageError("--recall-target", f"is given together with {flag}, which it tunes", "one of them")

    @property
    def run_depth(self) -> int:
        """Documents of each query in a run."""
        return self.depth or (self.rerank_depth if self.rerank else TABLE_DEPTH)

    @property
    def first_depth(self) -> int:
        """Documents of each query that are found, of which a cross-encoder may keep less."""
        return self.rerank_depth if self.rerank else self.run_depth

    @property
    def search_depth(self) -> int:
        """Documents of each query that each index is searched for."""
        return max(self.first_depth, FUSED_DEPTH) if self.sources > 1 else self.first_depth

    @property
    def sources(self) -> int:
        """How many results are fused."""
        return len(self.index) + len(self.run)

    def _check_fusion(self) -> None:
        if not self.sources:
            raise UsageError("--index", "is missing", "what to search in: an index, an embeddings folder, or a --run")
        for flag, given in (
            ("--fuse", self.fuse),
            ("--fuse-weights", self.fuse_weights),
            ("--tune-on", self.tune_on),
            ("--feedback-from fused", self.feedback_from == FUSED),
            ("--across-corpora", self.across_corpora),
        ):
            if given and self.sources < 2:
                raise UsageError(flag, "fuses several indexes, found one", None, "repeat --index for each")
        if self.fuse_weights and len(self.fuse_weights) != self.sources:
            found = f"found {len(self.fuse_weights)} weights for {self.sources} indexes and runs"
            raise UsageError("--fuse-weights", found, "one for each --index and --run")
        if self.queries is None:
            self._check_question()

    def _check_question(self) -> None:
        """What needs a table of queries."""
        for name in ("run", "tune_on", "feedback", "doc_aggregate", "judged", "output"):
            if getattr(self, name):
                flag = flag_of(name)
                raise UsageError(flag, "does not apply to a typed question", None, "pass --queries and --output")

    def record(self) -> dict[str, Any]:
        """Without what says nothing: of fusion for one index, of feedback or documents where there are none."""
        own = super().record()
        idle: list[str] = [] if self.sources > 1 else ["fuse", "fuse_weights"]
        unset = (
            "nprobe",
            "ef_search",
            "rescore",
            "recall_target",
            "feedback",
            "doc_aggregate",
            "rm3",
            "across_corpora",
        )
        idle += [name for name in unset if is_off(getattr(self, name))]
        fused = {"fuse": self.fuse or DEFAULT_FUSION} if self.sources > 1 else {}
        return {name: value for name, value in (own | fused).items() if name not in idle}


def search(config: SearchConfig, *, alone: bool = False) -> Answer | None:
    """Writes a run for a table of queries, or returns the answer to a question.

    alone: by this process, where torchrun started others that do not call this; else every process calls it.

    Raises: RetrievoError where index and queries do not fit; UsageError for options of another kind of index.
    """
    sources = _sources(config)
    with nullcontext(True) if alone else accompanied(config, sources) as leads:
        if leads and config.question is not None:
            return Asker(config, sources).answer(config.question)
        if leads:
            _write_run(config, plan(config, sources))
    return None


def converse(config: SearchConfig, questions: Iterable[str]) -> Iterator[Answer]:
    """Answers to one question after another; everything is opened once, before the first.

    Raises: as `search`.
    """
    sources = _sources(config)
    with accompanied(config, sources) as leads:
        if leads:
            asker = Asker(config, sources)
            yield from (asker.answer(question) for question in questions if question.strip())


def _sources(config: SearchConfig) -> list[Source]:
    sources = [open_source(path) for path in config.index]
    check_meaning(config, sources)
    check_corpora(config, sources)
    if config.corpus is None:  # who names a corpus knows which
        warn_of_changed_texts(sources)
    return sources


def _write_run(config: SearchConfig, plan: Plan) -> None:
    from retrievo.data.origin import QUERIES, read_now, warn_of_other_judgements
    from retrievo.data.qrels import Qrels
    from retrievo.data.run import RunWriter
    from retrievo.models.source import model_record
    from retrievo.support.artifact import Input, Output

    assert config.output is not None
    names = ["index"] if len(config.index) == 1 else [f"index-{n + 1}" for n in range(len(config.index))]
    indexes = {name: Input.of(path) for name, path in zip(names, config.index, strict=True)}
    runs = {f"run-{number}": Input.of(path) for number, path in enumerate(config.run, start=1)}
    qrels = {"qrels": config.tune_on, "judged": config.judged}
    judged = {name: Qrels.read(path).input for name, path in qrels.items() if path is not None}
    read = model_record(config.rerank, None)[1] if config.rerank else {}
    inputs = indexes | runs | judged | {"queries": plan.queries} | ({"ranker": read["model"]} if read else {})
    inputs |= _corpora([*config.index, *config.run])
    for qrels_read in judged.values():
        warn_of_other_judgements(qrels_read, config.queries, read_now(QUERIES, plan.queries))
    record = config.record() | {"depth": config.run_depth}
    output = Output(config.output, "run", record, inputs, force=config.force, single_file=True)
    if output.already_finished():
        return
    with output.build() as folder:
        with RunWriter(folder / config.output.name, format_of=config.output) as writer:
            with noted_splits() as splits:
                stats = _write_batches(plan, writer)
            stats |= splits.stats()
            writer.close(output.manifest(stats))
        output.finish(stats)
    facts = {"made": f"{config.output} ({stats['rows']:,} rows for {stats['queries']:,} queries)"}
    if stats["without_results"]:
        facts["empty"] = f"{stats['without_results']:,} queries found nothing"
    facts["took"] = console.seconds(output.elapsed)
    console.summary("searched", facts, f"retrievo evaluate --run {config.output} --qrels QRELS")


def _corpora(places: Sequence[Path]) -> dict[str, Input]:
    """The corpora behind indexes and runs, for the manifest: who reads the run knows whose documents it ranks."""
    from retrievo.data.origin import CORPUS, origins
    from retrievo.support.artifact import Input

    found = {one.fingerprint: one for place in places for one in origins(place, CORPUS)}
    names = [CORPUS, *(f"{CORPUS}-{number}" for number in range(2, 1 + len(found)))]
    return {name: Input(one.path, one.fingerprint) for name, one in zip(names, found.values(), strict=False)}


def _write_batches(plan: Plan, writer: RunWriter) -> dict[str, Any]:
    import numpy as np

    from retrievo.data.columns import taken
    from retrievo.data.ordering import ranks

    rows = answered = 0
    for found in plan.batches():
        writer.write(taken(plan.query_ids, found.query), found.doc_id, found.score, ranks(found.query))
        rows, answered = rows + len(found.query), answered + len(np.unique(found.query))
    return {"queries": len(plan.query_ids), "without_results": len(plan.query_ids) - answered, "rows": rows}
