"""Options of `retrievo search`, and the names of its choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from retrievo.retrieval.aggregation import AGGREGATIONS
from retrievo.retrieval.feedback import FEEDBACKS
from retrievo.retrieval.fusion import FUSIONS
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, flag_of, is_off, option

TABLE_DEPTH = 1_000
FUSED_DEPTH = 100  # of each index at least: what one ranks low another may rank high
DEFAULT_FUSION = "rrf"
OWN, FUSED = "own", "fused"  # whose first documents move a query
QUESTION_DEPTH = 10

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
    judged: Path | None = option("Search only the queries that these judgments know.", default=None)
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
        """Documents of each query in the result."""
        if self.queries is None:
            return self.depth or QUESTION_DEPTH
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
