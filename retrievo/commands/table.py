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
    """A verb: its options, the function that takes them, what it does, and lines to type.

    target: "module:function".
    help:   the first sentence stands in `retrievo --help`, where it has one line of 80 columns.
    group:  the heading that it stands under there.
    suffix: of what it makes as a step of a recipe, "" for a folder; None where it is no step.
    step:   its options in a recipe, where they are fewer.
    """

    config: type[Options]
    target: str
    help: str
    examples: tuple[str, ...]
    group: str
    suffix: str | None = None
    step: type[Options] | None = None

    @property
    def function(self) -> Callable[[Any], Any]:
        """What does the work; this imports what it needs."""
        module, name = self.target.split(":")
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        return found


COMMANDS: dict[str, Command] = {
    "demo": Command(
        DemoConfig,
        "retrievo.commands.demo:demo",
        "Try everything on a corpus made on the spot. The demo searches, pre-trains, trains twice, fuses and compares.",
        ("retrievo demo --quick", "retrievo demo"),
        group="Begin",
    ),
    "import": Command(
        ImportConfig,
        "retrievo.commands.import_:import_dataset",
        "Convert other formats into a dataset folder. The folder holds corpus, queries and qrels as Parquet.",
        ("retrievo import beir scifact.zip --output scifact", "retrievo import text notes/ --output notes-dataset"),
        group="Begin",
        suffix="",
    ),
    "pretrain": Command(
        PretrainConfig,
        "retrievo.commands.pretrain:pretrain",
        "Pre-train a backbone on documents alone.",
        (
            "retrievo pretrain --corpus msmarco.parquet",
            "retrievo pretrain --corpus wikipedia.parquet --objective simclr --normalize",
            "retrievo pretrain --corpus notes-dataset --model scratch:small --max-length 64 --batch-size 256",
        ),
        group="Train",
        suffix="",
    ),
    "train": Command(
        TrainConfig,
        "retrievo.commands.train:train",
        "Fine-tune an encoder or a cross-encoder. It learns from judged queries and hard negatives.",
        (
            "retrievo train --model M --data scifact --output stage-1",
            "retrievo train stage-2",
            "retrievo train --kind cross-encoder --model M --data scifact --negatives bm25.parquet --output ranker",
        ),
        group="Train",
        suffix="",
    ),
    "mine-negatives": Command(
        MineConfig,
        "retrievo.commands.mine_negatives:mine_negatives",
        "Mine hard negatives to train on. Candidates come from BM25, a trained model, runs or random draws; rules drop "
        "doubtful ones.",
        (
            "retrievo mine-negatives --data scifact --output negatives.parquet",
            "retrievo mine-negatives stage-1 to stage-2",
            "retrievo mine-negatives --source bm25:10,dense:20 --model stage-1 --data scifact "
            "--output negatives.parquet",
        ),
        group="Train",
        suffix=".parquet",
    ),
    "pseudo-label": Command(
        PseudoLabelConfig,
        "retrievo.commands.pseudo_label:pseudo_label",
        "Label unjudged queries with a cross-encoder. Its confident scores become judgments and negatives to train on.",
        (
            "retrievo pseudo-label --run reranked.parquet --output labels",
            "retrievo pseudo-label --run reranked.parquet --qrels qrels/train.parquet --output labels",
        ),
        group="Train",
        suffix="",
    ),
    "encode": Command(
        EncodeConfig,
        "retrievo.commands.encode:encode",
        "Encode a corpus or queries as vectors. They are written to an embeddings folder.",
        (
            "retrievo encode --model stage-1 --corpus scifact --output embeddings",
            "torchrun --nproc-per-node 8 -m retrievo encode --model stage-1 --corpus scifact --output embeddings",
        ),
        group="Search",
        suffix="",
    ),
    "index": Command(
        IndexConfig,
        "retrievo.commands.index:index",
        "Index texts with BM25, or embeddings with FAISS.",
        (
            "retrievo index --data scifact --output scifact/bm25",
            "retrievo index --embeddings embeddings --output index",
            "retrievo index --embeddings embeddings --type hnsw --output hnsw",
            "retrievo index --embeddings new-embeddings --add --output hnsw",
        ),
        group="Search",
        suffix="",
    ),
    "search": Command(
        SearchConfig,
        "retrievo.commands.search.run:search",
        "Search with a query table or a typed question. The results of several indexes are fused.",
        (
            "retrievo search --index scifact/bm25 --data scifact --output runs/bm25.parquet",
            'retrievo search "does vitamin D help against flu?" --index scifact/bm25',
            "retrievo search --interactive --index scifact/bm25 --index embeddings",
            "torchrun --nproc-per-node 8 -m retrievo search --index embeddings --queries scifact --output run.parquet",
            "retrievo search --index embeddings --data scifact --rerank ranker --output runs/reranked.parquet",
        ),
        group="Search",
        suffix=".parquet",
    ),
    "rerank": Command(
        RerankConfig,
        "retrievo.commands.rerank:rerank",
        "Rerank a run with a cross-encoder or an encoder. The scores also serve as a teacher of a smaller model.",
        (
            "retrievo rerank --run bm25.parquet --model ranker --data scifact --depth 100 --output reranked.parquet",
            "retrievo rerank --run negatives.parquet --qrels scifact/qrels/train.parquet --model ranker --data scifact "
            "--output teacher.parquet",
        ),
        group="Search",
        suffix=".parquet",
    ),
    "evaluate": Command(
        SweepConfig,
        "retrievo.commands.evaluate_suite:evaluate_any",
        "Evaluate runs against relevance judgments. Differences between runs are tested for significance.",
        (
            "retrievo evaluate --run runs/bm25.parquet --data scifact --metrics ndcg@10 recall@100",
            "retrievo evaluate --model stage-2 --data scifact",
            "retrievo evaluate --run runs/*.parquet --data scifact --baseline runs/bm25.parquet --report report.html",
            "retrievo evaluate --suite datasets --model stage-2 --metrics ndcg@10 recall@100",
        ),
        group="Evaluate",
        suffix=".json",
        step=EvaluateConfig,
    ),
    "run": Command(
        RunConfig,
        "retrievo.commands.recipe:run_recipe",
        "Run the unfinished steps of a recipe. A recipe is a TOML file of commands; its results are shown at the end.",
        (
            "retrievo run recipe.toml",
            "retrievo run recipe.toml --dry-run",
            "retrievo run scifact-small.toml --set data=scifact model=all-MiniLM-L6-v2 --output scifact-run",
        ),
        group="More",
    ),
    "export": Command(
        ExportConfig,
        "retrievo.commands.export:export",
        "Export embeddings as .npy and text files.",
        ("retrievo export embeddings --output exported",),
        group="More",
    ),
    "cache": Command(
        CacheConfig,
        "retrievo.commands.cache:cache",
        "List what the cache holds, or free space in it. It holds tokens, id maps, indexes and vectors of corpora and "
        "models.",
        ("retrievo cache", "retrievo cache --prune --older-than 30", "retrievo cache --prune --max-size 20GB"),
        group="More",
    ),
}
