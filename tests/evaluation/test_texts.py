"""Texts are found through the manifests of runs; where they are not at hand nothing is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.run import Run, RunWriter
from retrievo.evaluation.texts import Texts
from retrievo.support.artifact import Input, Output


def embeddings(path: Path, inputs: dict[str, Input]) -> Path:
    """A folder with the manifest of embeddings."""
    output = Output(path, "embeddings", {}, inputs)
    with output.build():
        output.finish({})
    return path


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": ["q1"], "text": ["wing"]}), tmp_path / "queries.parquet")
    return tmp_path / "queries.parquet"


def run_of(queries: Path) -> Run:
    """A run whose manifest names its queries."""
    output = Output(queries.with_name("run.parquet"), "run", {}, {"queries": Input(queries, "")}, single_file=True)
    with output.build() as folder:
        writer = RunWriter(folder / "run.parquet", format_of=output.path)
        writer.write(pa.array(["q1"]), pa.array(["d1"]), np.ones(1, np.float32), np.ones(1, np.int32))
        writer.close(output.manifest({}))
        output.finish({})
    return Run.open(output.path)


def test_the_queries_of_a_run_are_the_table_that_it_names(queries: Path) -> None:
    assert Texts.of([run_of(queries)]).of_queries(["q1", "q2"]) == {"q1": "wing"}


def test_behind_vectors_of_queries_is_the_table_that_they_were_made_from(queries: Path, tmp_path: Path) -> None:
    run = run_of(embeddings(tmp_path / "vectors", {"queries": Input.of(queries)}))
    assert Texts.of([run]).of_queries(["q1"]) == {"q1": "wing"}
    queries.unlink()
    assert Texts.of([run]) == Texts()


def test_vectors_that_were_imported_have_no_texts(tmp_path: Path) -> None:
    assert Texts.of([run_of(embeddings(tmp_path / "vectors", {}))]).of_queries(["q1"]) == {}
