"""The command line: parse, one library call, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

import retrievo
from retrievo.commands.cache import CacheConfig
from retrievo.commands.demo import DemoConfig
from retrievo.commands.encode import EncodeConfig
from retrievo.commands.evaluate_suite import SweepConfig
from retrievo.commands.export import ExportConfig
from retrievo.commands.import_ import ImportConfig
from retrievo.commands.index import IndexConfig
from retrievo.commands.mine_negatives import MineConfig
from retrievo.commands.pretrain import PretrainConfig
from retrievo.commands.pseudo_label import PseudoLabelConfig
from retrievo.commands.recipe import RunConfig
from retrievo.commands.rerank import RerankConfig
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.train_config import TrainConfig
from retrievo.support.commandline import as_markup, command_function, run_app, spread
from retrievo.support.console import typed_lines
from retrievo.support.options import Options, options_of

HELP = "Dense retrieval: pre-train, train, encode, index, search, mine negatives, evaluate."


@dataclass(frozen=True)
class Command:
    """A verb: its options, what runs it, one sentence, and lines to type."""

    config: type[Options]
    run: Callable[[Any], None]
    help: str
    examples: tuple[str, ...]


def _import(config: ImportConfig) -> None:
    from retrievo.commands.import_ import import_dataset

    import_dataset(config)


def _encode(config: EncodeConfig) -> None:
    from retrievo.commands.encode import encode

    encode(config)


def _export(config: ExportConfig) -> None:
    from retrievo.commands.export import export

    export(config)


def _index(config: IndexConfig) -> None:
    from retrievo.commands.index import index

    index(config)


def _search(config: SearchConfig) -> None:
    from retrievo.commands.search.run import converse, search

    answers = converse(config, typed_lines("question: ")) if config.interactive else [search(config)]
    for answer in answers:
        if answer is not None:
            answer.print(as_json=config.json)


def _evaluate(config: SweepConfig) -> None:
    from retrievo.commands.evaluate import evaluate
    from retrievo.commands.evaluate_suite import sweep
    from retrievo.evaluation.formats import print_evaluation
    from retrievo.evaluation.suite import print_suite

    if config.sweeps:
        print_suite(sweep(config), config.style)
    else:
        print_evaluation(evaluate(config), config.style, changed=config.changed)


def _pretrain(config: PretrainConfig) -> None:
    from retrievo.commands.pretrain import pretrain

    pretrain(config)


def _train(config: TrainConfig) -> None:
    from retrievo.commands.train import train

    train(config)


def _mine(config: MineConfig) -> None:
    from retrievo.commands.mine_negatives import mine_negatives

    mine_negatives(config)


def _rerank(config: RerankConfig) -> None:
    from retrievo.commands.rerank import rerank

    rerank(config)


def _pseudo_label(config: PseudoLabelConfig) -> None:
    from retrievo.commands.pseudo_label import pseudo_label

    pseudo_label(config)


def _run(config: RunConfig) -> None:
    from retrievo.commands.recipe import print_results, run_recipe

    print_results(run_recipe(config))


def _cache(config: CacheConfig) -> None:
    from retrievo.commands.cache import cache

    cache(config).print(as_json=config.json)


def _demo(config: DemoConfig) -> None:
    from retrievo.commands.demo import demo

    demo(config).print(as_json=config.json)


COMMANDS = {
    "import": Command(
        ImportConfig,
        _import,
        "Make a dataset folder (corpus, queries, qrels as Parquet) from files in another format.",
        ("retrievo import beir scifact.zip --output scifact", "retrievo import text notes/ --output notes-dataset"),
    ),
    "pretrain": Command(
        PretrainConfig,
        _pretrain,
        "Pre-train a backbone on bare documents: masked language model, Condenser, coCondenser, contrast of crops.",
        (
            "retrievo pretrain --corpus msmarco.parquet",
            "retrievo pretrain --corpus wikipedia.parquet --objective simclr --normalize",
            "retrievo pretrain --corpus notes-dataset --model scratch:small --max-length 64 --batch-size 256",
        ),
    ),
    "train": Command(
        TrainConfig,
        _train,
        "Fine-tune an encoder or a cross-encoder on queries, their relevant documents and hard negatives.",
        (
            "retrievo train --model M --corpus C --queries Q --qrels R --negatives bm25.parquet --output stage-1",
            "retrievo train stage-2",
            "retrievo train --kind cross-encoder --model M --corpus C --queries Q --qrels R --negatives bm25.parquet "
            "--output ranker",
        ),
    ),
    "mine-negatives": Command(
        MineConfig,
        _mine,
        "Find hard negatives: with BM25, a trained model, runs, or at random; drop the doubtful ones.",
        (
            "retrievo mine-negatives --source bm25 --corpus C --queries Q --qrels R --output negatives.parquet",
            "retrievo mine-negatives stage-1 to stage-2",
            "retrievo mine-negatives --source bm25:10,dense:20 --model stage-1 --corpus C --queries Q --qrels R "
            "--output negatives.parquet",
        ),
    ),
    "encode": Command(
        EncodeConfig,
        _encode,
        "Turn texts into vectors: an embeddings folder.",
        (
            "retrievo encode --model stage-1 --corpus scifact --output embeddings",
            "torchrun --nproc-per-node 8 -m retrievo encode --model stage-1 --corpus scifact --output embeddings",
        ),
    ),
    "index": Command(
        IndexConfig,
        _index,
        "Build an index over embeddings (FAISS) or over texts (BM25).",
        (
            "retrievo index --type bm25 --corpus scifact --output scifact/bm25",
            "retrievo index --embeddings embeddings --output index",
            "retrievo index --embeddings embeddings --type hnsw --output hnsw",
            "retrievo index --embeddings new-embeddings --add --output hnsw",
        ),
    ),
    "export": Command(
        ExportConfig,
        _export,
        "Write the vectors and ids of an embeddings folder as .npy and text.",
        ("retrievo export embeddings --output exported",),
    ),
    "search": Command(
        SearchConfig,
        _search,
        "Search an index with a table of queries, or with a question that you type.",
        (
            "retrievo search --index scifact/bm25 --queries scifact --output runs/bm25.parquet",
            'retrievo search "does vitamin D help against flu?" --index scifact/bm25',
            "retrievo search --interactive --index scifact/bm25 --index embeddings",
            "torchrun --nproc-per-node 8 -m retrievo search --index embeddings --queries scifact --output run.parquet",
            "retrievo search --index embeddings --queries scifact --rerank ranker --output runs/reranked.parquet",
        ),
    ),
    "rerank": Command(
        RerankConfig,
        _rerank,
        "Score the documents of a run with a cross-encoder or an encoder: a better order, and what a teacher knows.",
        (
            "retrievo rerank --run bm25.parquet --model ranker --corpus scifact --queries scifact --depth 100 "
            "--output reranked.parquet",
            "retrievo rerank --run negatives.parquet --qrels qrels/train.parquet --model ranker --corpus scifact "
            "--queries scifact --output teacher.parquet",
        ),
    ),
    "pseudo-label": Command(
        PseudoLabelConfig,
        _pseudo_label,
        "Label queries that nobody judged with what a cross-encoder is sure of: judgments and negatives to train on.",
        (
            "retrievo pseudo-label --run reranked.parquet --output labels",
            "retrievo pseudo-label --run reranked.parquet --qrels qrels/train.parquet --output labels",
        ),
    ),
    "evaluate": Command(
        SweepConfig,
        _evaluate,
        "Score runs against judgments, and test their differences.",
        (
            "retrievo evaluate --run runs/bm25.parquet --qrels scifact --metrics ndcg@10 recall@100",
            "retrievo evaluate --run runs/*.parquet --qrels scifact --baseline runs/bm25.parquet --report report.html",
            "retrievo evaluate --suite datasets --model stage-2 --metrics ndcg@10 recall@100",
        ),
    ),
    "run": Command(
        RunConfig,
        _run,
        "Do the steps of a recipe that are not finished, from pre-training to evaluation; then show its results.",
        (
            "retrievo run recipe.toml",
            "retrievo run recipe.toml --dry-run",
            "retrievo run scifact-small.toml --set data=scifact model=all-MiniLM-L6-v2 --output scifact-run",
        ),
    ),
    "cache": Command(
        CacheConfig,
        _cache,
        "List what the cache keeps of corpora and models (tokens, id maps, indexes, vectors), or make room.",
        ("retrievo cache", "retrievo cache --prune --older-than 30", "retrievo cache --prune --max-size 20GB"),
    ),
    "demo": Command(
        DemoConfig,
        _demo,
        "Try everything on a corpus made on the spot: search, pre-train, train twice, fuse, compare.",
        ("retrievo demo --quick", "retrievo demo"),
    ),
}


def several_flags() -> dict[str, set[str]]:
    """For each command, the flags that take several values after one another."""
    return {
        name: {option.flag for option in options_of(command.config) if option.declaration.several}
        for name, command in COMMANDS.items()
    }


def _version(wanted: bool) -> None:
    if wanted:
        print(f"retrievo {retrievo.__version__}")
        raise typer.Exit


def _app() -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help=HELP)

    @app.callback()
    def main(
        version: bool = typer.Option(
            False, "--version", help="Print the version and stop.", callback=_version, is_eager=True
        ),
    ) -> None:
        pass

    for name, command in COMMANDS.items():
        examples = "\n\n".join(f"  {as_markup(line)}" for line in command.examples)
        function = command_function(name, command.config, command.run, list(COMMANDS))
        app.command(name, help=f"{as_markup(command.help)}\n\nExamples:\n\n{examples}", no_args_is_help=False)(function)
    return app


app = _app()


def main() -> None:
    """The installed command `retrievo`."""
    sys.exit(run_app(app, spread(sys.argv[1:], several_flags())))
