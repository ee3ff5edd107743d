"""The commands: one table for the command line, recipes, the library and the reference page.

Configs import the standard library only, and functions are named by string, so that reading the table is quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retrievo.commands.cache import CacheConfig
from retrievo.commands.demo import DemoConfig
from retrievo.commands.encode import EncodeConfig
from retrievo.commands.evaluate import EvaluateConfig
from retrievo.commands.evaluate_suite import SweepConfig
from retrievo.commands.export import ExportConfig
from retrievo.commands.import_ import ImportConfig
from retrievo.commands.index import IndexConfig
from retrievo.commands.mine_negatives import MineConfig
from retrievo.commands.pretrain import PretrainConfig
from retrievo.commands.pseudo_label import PseudoLabelConfig
from retrievo.commands.recipe_config import RunConfig
from retrievo.commands.rerank import RerankConfig
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.train_config import TrainConfig
from retrievo.support.options import Options


@dataclass(frozen=True)
class Command:
    """A verb: its options, the function that takes them, one sentence, and lines to type.

    target: "module:function".
    suffix: of what it makes as a step of a recipe, "" for a folder; None where it is no step.
    step:   its options in a recipe, where they are fewer.
    """

    config: type[Options]
    target: str
    help: str
    examples: tuple[str, ...]
    suffix: str | None = None
    step: type[Options] | None = None

    @property
    def function(self) -> Callable[[Any], Any]:
        """What does the work; this imports what it needs."""
        module, name = self.target.split(":")
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        return found


COMMANDS: dict[str, Command] = {
    "import": Command(
        ImportConfig,
        "retrievo.commands.import_:import_dataset",
        "Convert files of another format into a dataset folder (corpus, queries and qrels as Parquet).",
        ("retrievo import beir scifact.zip --output scifact", "retrievo import text notes/ --output notes-dataset"),
        suffix="",
    ),
    "pretrain": Command(
        PretrainConfig,
        "retrievo.commands.pretrain:pretrain",
        "Pre-train a backbone on documents alone, without queries or judgments.",
        (
            "retrievo pretrain --corpus msmarco.parquet",
            "retrievo pretrain --corpus wikipedia.parquet --objective simclr --normalize",
            "retrievo pretrain --corpus notes-dataset --model scratch:small --max-length 64 --batch-size 256",
        ),
        suffix="",
    ),
    "train": Command(
        TrainConfig,
        "retrievo.commands.train:train",
        "Fine-tune an encoder or a cross-encoder on judged queries and hard negatives.",
        (
            "retrievo train --model M --data scifact --output stage-1",
            "retrievo train stage-2",
            "retrievo train --kind cross-encoder --model M --corpus C --queries Q --qrels R --negatives bm25.parquet "
            "--output ranker",
        ),
        suffix="",
    ),
    "mine-negatives": Command(
        MineConfig,
        "retrievo.commands.mine_negatives:mine_negatives",
        "Mine hard negatives with BM25, a trained model, runs or random draws, and filter out doubtful ones.",
        (
            "retrievo mine-negatives --data scifact --output negatives.parquet",
            "retrievo mine-negatives stage-1 to stage-2",
            "retrievo mine-negatives --source bm25:10,dense:20 --model stage-1 --corpus C --queries Q --qrels R "
            "--output negatives.parquet",
        ),
        suffix=".parquet",
    ),
    "encode": Command(
        EncodeConfig,
        "retrievo.commands.encode:encode",
        "Encode a corpus or queries as vectors, into an embeddings folder.",
        (
            "retrievo encode --model stage-1 --corpus scifact --output embeddings",
            "torchrun --nproc-per-node 8 -m retrievo encode --model stage-1 --corpus scifact --output embeddings",
        ),
        suffix="",
    ),
    "index": Command(
        IndexConfig,
        "retrievo.commands.index:index",
        "Build a FAISS index over embeddings, or a BM25 index over texts.",
        (
            "retrievo index --data scifact --output scifact/bm25",
            "retrievo index --embeddings embeddings --output index",
            "retrievo index --embeddings embeddings --type hnsw --output hnsw",
            "retrievo index --embeddings new-embeddings --add --output hnsw",
        ),
        suffix="",
    ),
    "export": Command(
        ExportConfig,
        "retrievo.commands.export:export",
        "Write the vectors and ids of an embeddings folder as .npy and text.",
        ("retrievo export embeddings --output exported",),
    ),
    "search": Command(
        SearchConfig,
        "retrievo.commands.search.run:search",
        "Search an index with a query table, or with a typed question.",
        (
            "retrievo search --index scifact/bm25 --data scifact --output runs/bm25.parquet",
            'retrievo search "does vitamin D help against flu?" --index scifact/bm25',
            "retrievo search --interactive --index scifact/bm25 --index embeddings",
            "torchrun --nproc-per-node 8 -m retrievo search --index embeddings --queries scifact --output run.parquet",
            "retrievo search --index embeddings --queries scifact --rerank ranker --output runs/reranked.parquet",
        ),
        suffix=".parquet",
    ),
    "rerank": Command(
        RerankConfig,
        "retrievo.commands.rerank:rerank",
        "Rerank a run with a cross-encoder or an encoder; the scores also serve to teach a smaller model.",
        (
            "retrievo rerank --run bm25.parquet --model ranker --data scifact --depth 100 --output reranked.parquet",
            "retrievo rerank --run negatives.parquet --qrels qrels/train.parquet --model ranker --corpus scifact "
            "--queries scifact --output teacher.parquet",
        ),
        suffix=".parquet",
    ),
    "pseudo-label": Command(
        PseudoLabelConfig,
        "retrievo.commands.pseudo_label:pseudo_label",
        "Label unjudged queries with a cross-encoder's confident scores, as judgments and negatives to train on.",
        (
            "retrievo pseudo-label --run reranked.parquet --output labels",
            "retrievo pseudo-label --run reranked.parquet --qrels qrels/train.parquet --output labels",
        ),
        suffix="",
    ),
    "evaluate": Command(
        SweepConfig,
        "retrievo.commands.evaluate_suite:evaluate_any",
        "Evaluate runs against relevance judgments, and test differences for significance.",
        (
            "retrievo evaluate --run runs/bm25.parquet --data scifact --metrics ndcg@10 recall@100",
            "retrievo evaluate --run runs/*.parquet --data scifact --baseline runs/bm25.parquet --report report.html",
            "retrievo evaluate --suite datasets --model stage-2 --metrics ndcg@10 recall@100",
        ),
        suffix=".json",
        step=EvaluateConfig,
    ),
    "run": Command(
        RunConfig,
        "retrievo.commands.recipe:run_recipe",
        "Run the unfinished steps of a recipe, from pre-training to evaluation, and show the results.",
        (
            "retrievo run recipe.toml",
            "retrievo run recipe.toml --dry-run",
            "retrievo run scifact-small.toml --set data=scifact model=all-MiniLM-L6-v2 --output scifact-run",
        ),
    ),
    "cache": Command(
        CacheConfig,
        "retrievo.commands.cache:cache",
        "List what the cache holds for corpora and models (tokens, id maps, indexes, vectors), or free space.",
        ("retrievo cache", "retrievo cache --prune --older-than 30", "retrievo cache --prune --max-size 20GB"),
    ),
    "demo": Command(
        DemoConfig,
        "retrievo.commands.demo:demo",
        "Try everything on a corpus made on the spot: search, pre-train, train twice, fuse, compare.",
        ("retrievo demo --quick", "retrievo demo"),
    ),
}
