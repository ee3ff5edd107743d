"""`--data`: one dataset folder stands for the corpus, the queries and the judgments of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from retrievo.commands.encode import EncodeConfig
from retrievo.commands.evaluate import EvaluateConfig
from retrievo.commands.index import IndexConfig
from retrievo.commands.mine_negatives import MineConfig
from retrievo.commands.pretrain import PretrainConfig
from retrievo.commands.rerank import RerankConfig
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.train_config import TrainConfig
from retrievo.support.artifact import Manifest
from retrievo.support.commandline import as_typed
from retrievo.support.errors import UsageError
from retrievo.support.settings import Layer, resolve

D, TRAIN, DEV = Path("d"), Path("d/qrels/train.parquet"), Path("d/qrels/dev.parquet")


@pytest.mark.parametrize(
    ("config", "stands_for"),
    [
        (TrainConfig(model="m", data="d", output="o"), {"corpus": D, "queries": D, "qrels": TRAIN}),
        (MineConfig(data="d", output="o.parquet"), {"corpus": D, "queries": D, "qrels": TRAIN}),
        (SearchConfig(index="i", data="d", output="o.parquet"), {"corpus": None, "queries": D, "judged": D}),
        (SearchConfig(index="i", data="d", split="dev", output="o.parquet"), {"queries": D, "judged": DEV}),
        (EvaluateConfig(run="r", data="d"), {"qrels": D, "corpus": None}),
        (EvaluateConfig(run="r", data="d", split="dev"), {"qrels": DEV}),
        (RerankConfig(run="r", model="m", data="d", output="o.trec"), {"corpus": D, "queries": D, "qrels": None}),
        (EncodeConfig(model="m", data="d", output="o"), {"corpus": D, "queries": None}),
        (IndexConfig(data="d", output="o"), {"corpus": D, "type": "bm25"}),
        (IndexConfig(corpus="c", output="o"), {"type": "bm25"}),
        (IndexConfig(embeddings="e", output="o"), {"type": "flat"}),
        (PretrainConfig(data="d"), {"corpus": (D,)}),
        (TrainConfig(model="m", data="d", queries="q", output="o"), {"queries": Path("q"), "qrels": TRAIN}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_a_folder_stands_for_the_tables_that_are_not_given(config: object, stands_for: dict) -> None:
    assert {name: getattr(config, name) for name in stands_for} == stands_for


def test_the_line_to_type_names_the_folder_alone() -> None:
    config = TrainConfig(model="m", data="d", output="o")
    assert as_typed("train", config) == "retrievo train --data d --model m --output o"


def test_the_folder_of_a_flag_goes_before_the_tables_of_a_file() -> None:
    below = Layer("train.toml", {"corpus": "c", "queries": "q", "qrels": "r", "model": "m", "output": "o"})
    made = resolve(TrainConfig, [Layer("flag", {"data": "d", "queries": "own"}, typed=True), below])
    assert (made.config.corpus, made.config.queries, made.config.qrels) == (D, Path("own"), TRAIN)
    assert (made.sources["corpus"], made.sources["queries"], made.sources["qrels"]) == ("data", "flag", "data")


def test_a_table_that_nothing_gives_is_named_with_both_ways_to_give_it() -> None:
    with pytest.raises(UsageError, match=r"--queries: is needed .*; pass --queries, or a dataset folder: --data DATA"):
        TrainConfig(model="m", corpus="c", qrels="r", output="o")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("index --data d --embeddings e --output o", "--data: applies only without --embeddings"),
        ("index --corpus c --embeddings e --output o", "is given together with --"),
        ("search question --index i --data d", "--data: applies only without a QUESTION"),
        ("encode --model m --data d --queries q --output o", "--data: applies only without --queries"),
        ("train --model m --split dev --output o", "--split: applies only with --data"),
    ],
)
def test_what_does_not_go_with_a_folder_is_said(typed: str, told: str, retrievo: Callable) -> None:
    ran = retrievo(*typed.split())
    assert (ran.code, told in ran.err) == (2, True), ran.err


def test_a_missing_part_is_told_with_what_the_folder_has(toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    evaluate = ("evaluate", "--run", tmp_path / "r.trec", "--data")
    (tmp_path / "r.trec").write_text("q1 Q0 d1 1 1.0 x\n")
    ran = retrievo(*evaluate, toy_dataset, "--split", "dev")
    assert (ran.code, "has the splits test, train; pass --split test" in ran.err) == (1, True), ran.err
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "corpus.parquet").write_bytes((toy_dataset / "corpus.parquet").read_bytes())
    ran = retrievo(*evaluate, bare, "--split", "dev")
    assert (ran.code, f"{bare} has corpus.parquet and no relevance judgments" in ran.err) == (1, True), ran.err
    ran = retrievo("train", "--model", "scratch:tiny", "--data", bare, "--output", tmp_path / "out")
    assert (ran.code, "the queries (it holds corpus.parquet)" in ran.err) == (1, True), ran.err


def test_one_folder_gives_the_bytes_of_the_tables(toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    judged = toy_dataset / "qrels" / "train.parquet"
    lines = {
        "folder": (["--data", toy_dataset], ["--data", toy_dataset, "--split", "train"]),
        "tables": (
            ["--type", "bm25", "--corpus", toy_dataset],
            ["--queries", toy_dataset, "--judged", judged],
        ),
    }
    for name, (index, search) in lines.items():
        made, run = tmp_path / name / "index", tmp_path / name / "run.trec"
        assert retrievo("index", *index, "--output", made).code == 0
        assert retrievo("search", "--index", made, *search, "--output", run).code == 0
    assert (tmp_path / "folder" / "run.trec").read_bytes() == (tmp_path / "tables" / "run.trec").read_bytes()
    configs = [Manifest.read(tmp_path / name / "index", "bm25-index").config for name in lines]
    assert configs[0] == configs[1]
    asked = {line.split()[0] for line in (tmp_path / "folder" / "run.trec").read_text().splitlines()}
    assert asked == set(pq.read_table(judged)["query_id"].to_pylist())
