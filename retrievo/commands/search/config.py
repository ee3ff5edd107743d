"""Options of `retrievo search`, and the names of its choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrievo.data.options import (
    K1,
    B,
    corpus_option,
    data_option,
    force_option,
    heap_option,
    json_option,
    memory_option,
    of_data,
    output_option,
    qrels_option,
    queries_option,
    split_option,
    threads_option,
)
from retrievo.data.run_files import check_run_suffix
from retrievo.evaluation.names import check_metric
from retrievo.models.compute import Computes
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option
from retrievo.retrieval.aggregation import AGGREGATIONS
from retrievo.retrieval.feedback import FEEDBACKS
from retrievo.retrieval.fusion import FUSIONS
from retrievo.support.conditions import flag_of, only_where, only_with, only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.publishing import MANIFEST

TABLE_DEPTH = 1_000
FUSED_DEPTH = 100  # of each index at least: what one ranks low another may rank high
DEFAULT_FUSION = "rrf"
OWN, FUSED = "own", "fused"  # whose first documents move a query
QUESTION_DEPTH = 10

_SEVERAL = only_where(
    "with several indexes or runs", "index", "run", holds=lambda index, run: len(index) + len(run) > 1
)
_OF_TABLE = only_with("queries")
_WITH_FEEDBACK, _WITH_RM3 = only_with("feedback"), only_with("rm3")
_OF_BM25, _DENSE, _APPROXIMATE = "BM25 indexes", "dense indexes", "approximate indexes"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Computes, Options):
    """Options of `retrievo search`."""

    question: str | None = option(
        "Question to answer, in quotes.",
        default=None,
        positional=True,
        alternative="queries",
        shown=True,
        group="Search",
    )
    index: tuple[Path, ...] = option(
        "Index or embeddings folder to search. The results of several are fused; an embeddings folder is searched "
        "exactly.",
        default=(),
        shown=True,
        group="Search",
    )
    interactive: bool = option(
        "Ask for one question after another. An empty line ends the session.",
        default=False,
        alternative="queries",
        shown=True,
        group="Search",
    )
    run: tuple[Path, ...] = option(
        "Run to fuse with the results of the indexes.", default=(), applies=_OF_TABLE, group="Fusion"
    )
    data: Path | None = data_option(
        "queries",
        "judged",
        applies=only_where("without a QUESTION", "question", holds=lambda question: question is None)
        & only_without("interactive"),
    )
    split: str | None = split_option()
    queries: Path | None = queries_option(default=None, alternative="queries", shown=True)
    judged: Path | None = qrels_option(
        default=None,
        help="Relevance judgments; only judged queries are searched.",
        applies=_OF_TABLE,
    )
    output: Path | None = output_option(
        "Run file to write. The suffix sets the format: .parquet, .trec, .txt or .run (TREC), .tsv (MS MARCO).",
        default=None,
        applies=_OF_TABLE,
        shown=True,
    )
    depth: int | None = option(
        "Number of documents per query.",
        default=None,
        minimum=1,
        shown=True,
        hidden_default=f"{TABLE_DEPTH:,} for a query table, {QUESTION_DEPTH} for a question",
        group="Search",
    )
    fuse: str = option(
        "How the results of several indexes are fused.",
        default=DEFAULT_FUSION,
        choices=tuple(FUSIONS),
        applies=_SEVERAL,
        shown=True,
        group="Fusion",
    )
    fuse_weights: tuple[float, ...] = option(
        "Weight of each index and then of each run, in the order given.",
        default=(),
        above=0,
        alternative="weights",
        applies=_SEVERAL,
        hidden_default="equal weights",
        group="Fusion",
    )
    tune_on: Path | None = qrels_option(
        default=None,
        help="Relevance judgments on which the fusion weights are tuned.",
        alternative="weights",
        applies=_SEVERAL & _OF_TABLE,
        group="Fusion",
    )
    tune_metric: str = option(
        "Metric for which the fusion weights are tuned.",
        default="ndcg@10",
        check=check_metric,
        applies=only_with("tune_on"),
        group="Fusion",
    )
    feedback: str | None = option(
        "Pseudo-relevance feedback of dense indexes. The first documents move the query, which is searched again.",
        default=None,
        choices=tuple(FEEDBACKS),
        applies=_OF_TABLE,
        of_index=_DENSE,
        hidden_default="no feedback",
        group="Feedback",
    )
    feedback_depth: int = option(
        "Number of documents that feedback uses.", default=3, minimum=1, applies=_WITH_FEEDBACK, group="Feedback"
    )
    feedback_weight: float = option(
        "Weight of the feedback documents; the query has the rest.",
        default=0.5,
        minimum=0,
        maximum=1,
        applies=only_with("feedback", "rocchio"),
        group="Feedback",
    )
    feedback_from: str = option(
        "Documents that feedback uses: of each index on its own, or of the fused results.",
        default=OWN,
        choices=(OWN, FUSED),
        applies=_WITH_FEEDBACK,
        group="Feedback",
    )
    across_corpora: bool = option(
        "Rank documents of different corpora together. Each result names its corpus.",
        default=False,
        applies=_SEVERAL & only_without("corpus"),
        group="Fusion",
    )
    rerank: str | None = option(
        "Cross-encoder that reranks the first documents: a model folder or a Hugging Face name.",
        default=None,
        path_or_name=True,
        affects_output=False,
        shown=True,
        hidden_default="no reranking",
        group="Reranking",
    )
    rerank_depth: int = option(
        "Number of documents per query to rerank and keep.",
        default=100,
        minimum=1,
        applies=only_with("rerank"),
        group="Reranking",
    )
    doc_aggregate: str | None = option(
        "Merge the passages of a document into one result, with the score of its best or of its first passage.",
        default=None,
        choices=tuple(AGGREGATIONS),
        applies=_OF_TABLE,
        hidden_default="passages are ranked on their own",
        group="Search",
    )
    doc_separator: str = option(
        "Text between the document id and the passage number in the id of a passage.",
        default="#",
        applies=only_with("doc_aggregate"),
        group="Search",
    )
    k1: float | None = option(
        "BM25 k1 (saturation of the term frequency).",
        default=None,
        minimum=0,
        hidden_default=f"{K1}",
        of_index=_OF_BM25,
        group="BM25",
    )
    b: float | None = option(
        "BM25 b (document length normalization).",
        default=None,
        minimum=0,
        maximum=1,
        hidden_default=f"{B}",
        of_index=_OF_BM25,
        group="BM25",
    )
    language: str | None = option(
        "Language of the analyzer for queries, as in en, de or zh.",
        default=None,
        hidden_default="the language of the index",
        of_index=_OF_BM25,
        group="BM25",
    )
    rm3: bool = option(
        "Query expansion with RM3. The first documents add terms to the query, which is searched again.",
        default=False,
        of_index=_OF_BM25,
        group="BM25",
    )
    rm3_documents: int = option(
        "Number of documents from which RM3 takes terms.", default=10, minimum=1, applies=_WITH_RM3, group="BM25"
    )
    rm3_words: int = option(
        "Number of terms that RM3 adds to the query.", default=10, minimum=1, applies=_WITH_RM3, group="BM25"
    )
    rm3_weight: float = option(
        "Weight of the original query in RM3.", default=0.5, minimum=0, maximum=1, applies=_WITH_RM3, group="BM25"
    )
    heap: str | None = heap_option(of_index=_OF_BM25)
    nprobe: int | None = option(
        "Number of inverted lists to scan per query.",
        default=None,
        minimum=1,
        hidden_default="1/32 of the lists, at least 8",
        of_index="indexes of the ivf types",
        group="FAISS",
    )
    ef_search: int | None = option(
        "Number of candidates to follow in the HNSW graph.",
        default=None,
        minimum=1,
        hidden_default="128, or the number of rescored candidates if larger",
        of_index="indexes of the hnsw type",
        group="FAISS",
    )
    rescore: int | None = option(
        "Number of candidates per query to rescore exactly with the embeddings. 0 keeps the scores of the index.",
        default=None,
        minimum=0,
        hidden_default="1 to 20 times --depth, depending on the type",
        of_index=_APPROXIMATE,
        group="FAISS",
    )
    recall_target: float | None = option(
        "Tune --nprobe, --ef-search and --rescore on 200 queries to reach this recall.",
        default=None,
        above=0,
        maximum=1,
        of_index=_APPROXIMATE,
        hidden_default="no tuning",
        group="FAISS",
    )
    memory: str | None = memory_option(of_index=_DENSE)
    batch_size: int | None = option(
        "Number of queries per scan of the vectors.",
        default=None,
        minimum=1,
        affects_output=False,
        hidden_default="1,024",
        of_index="exact dense indexes",
        group="Precision and memory",
    )
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option()
    device: str = device_option()
    threads: int | None = threads_option()
    corpus: Path | None = corpus_option(
        default=None, affects_output=False, hidden_default="the one that the index was made from"
    )
    json: bool = json_option(applies=only_without("queries"))
    force: bool = force_option()

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, "queries", "judged", split=self.split)

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
        if self.question is not None and (Path(self.question) / MANIFEST).is_file():
            fix = f"repeat the flag: --index {self.question}"
            raise UsageError(
                "QUESTION", f"'{self.question}' is a folder that retrievo made", "words to search for", fix
            )
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
    def places(self) -> tuple[Path, ...]:
        """The indexes and runs whose results are fused."""
        return (*self.index, *self.run)

    @property
    def sources(self) -> int:
        """How many results are fused."""
        return len(self.places)

    def _check_fusion(self) -> None:
        if not self.sources:
            raise UsageError("--index", "is missing", "what to search in: an index, an embeddings folder, or a --run")
        if self.feedback_from == FUSED and self.sources < 2:
            found = "fuses several indexes, found one"
            raise UsageError("--feedback-from fused", found, None, "repeat --index for each")
        if self.fuse_weights and len(self.fuse_weights) != self.sources:
            found = f"found {len(self.fuse_weights)} weights for {self.sources} indexes and runs"
            raise UsageError("--fuse-weights", found, "one for each --index and --run")
