"""What lies in examples/: recipes are read, and every command of the script is one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECIPES = sorted(EXAMPLES.glob("*-pretrain.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_pretraining_is_read_whole(recipe: Path, retrievo: Callable) -> None:
    outcome = retrievo("pretrain", "--config", recipe, "--corpus", "c.parquet", "--show-config")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    keys = [line.partition(" = ")[0] for line in recipe.read_text().splitlines() if " = " in line and line[0] != "#"]
    assert len(keys) > 8
    for key in keys:
        assert f"{key} = " in outcome.out
        assert str(recipe) in next(line for line in outcome.out.splitlines() if line.startswith(f"{key} = "))


def test_there_is_a_recipe_of_each_paper() -> None:
    assert {path.stem for path in RECIPES} >= {
        "cocondenser-msmarco-pretrain",
        "contriever-wikipedia-pretrain",
        "contriever-wikipedia-to-finetune-pretrain",
    }


@pytest.fixture(scope="module")
def grid() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretraining_grid", EXAMPLES / "pretraining_grid.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    for name in ("acl_titles", "squad", "scifact", "nfcorpus"):
        folder = tmp_path / "data" / name
        (folder / "qrels").mkdir(parents=True)
        ids = [str(number) for number in range(20)]
        pq.write_table(pa.table({"id": ids, "text": ids}), folder / "corpus.parquet")
        pq.write_table(pa.table({"id": ids, "text": ids}), folder / "queries.parquet")
        for split, some in (("train", ids[:15]), ("dev" if name == "squad" else "test", ids[15:])):
            columns = {"query_id": some, "doc_id": some, "relevance": pa.array([1] * len(some), pa.int32())}
            pq.write_table(pa.table(columns), folder / "qrels" / f"{split}.parquet")
    return tmp_path / "data"


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_every_command_of_the_grid_is_understood(
    size: str, grid: ModuleType, collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrievo: Callable
) -> None:
    typed: list[list[str]] = []
    monkeypatch.setattr(
        grid.Lab, "retrievo", lambda lab, *arguments: typed.append([str(argument) for argument in arguments]) or ""
    )
    grid.main([str(collections), str(tmp_path / "out"), "--size", size, "--seeds", "0", "--dry-run"])
    unique = {tuple(arguments): None for arguments in typed}
    assert len(unique) > 100
    for arguments in unique:
        if "to" in arguments or len(arguments) == 2:  # a stage that is not there yet
            continue
        outcome = retrievo(*arguments, "--show-config")
        assert outcome.code == 0, (arguments, outcome.err)
        assert "warning" not in outcome.err, (arguments, outcome.err)
    sample = pq.read_table(tmp_path / "out" / "acl_titles" / "queries.parquet")["id"].to_pylist()
    assert sample == [str(number) for number in range(15, 20)]


def test_pooled_seeds_are_means_over_seeds_with_the_differences_of_each(
    grid: ModuleType, collections: Path, tmp_path: Path
) -> None:
    def run(name: str, rank: int) -> Path:
        """A run in which the relevant document of every query has this rank."""
        rows = [
            (str(query), str((query + rank - at) % 20), -at) for query in range(15, 20) for at in range(1, rank + 1)
        ]
        query_id, doc_id, score = zip(*rows, strict=True)
        columns = {"query_id": query_id, "doc_id": doc_id, "score": pa.array(score, pa.float32())}
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    (tmp_path / "results").mkdir()
    lab = grid.Lab(collections, tmp_path, grid.SIZES["small"], "model")
    arms = [[run("plain-0.parquet", 2), run("plain-1.parquet", 2)], [run("new-0.parquet", 1), run("new-1.parquet", 2)]]
    lab.pooled("seeds", "scifact", arms, ["mrr@10"])
    assert (tmp_path / "results" / "seeds.md").read_text().splitlines()[2:] == [
        "| plain | 0.5000 |",
        "| new | 0.7500, +0.2500 (+0.2500 to +0.2500), p = 0.062; +0.0000 to +0.5000 |",
    ]
