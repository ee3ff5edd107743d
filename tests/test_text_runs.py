"""Runs written as text know what they were made from, like every output: from the manifest beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.run import Run, RunWriter
from retrievo.evaluation.texts import Texts
from retrievo.support import publishing
from retrievo.support.artifact import Input, Manifest, Output
from retrievo.support.errors import RetrievoError
from retrievo.support.publishing import manifest_beside

NAMES = ["run.trec", "run.tsv", "run.txt", "run.trec.gz"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """Two documents and two queries as embeddings folders."""
    home = tmp_path_factory.mktemp("vectors")
    (home / "ids.txt").write_text("a\nb\n")
    np.save(home / "x.npy", np.eye(2, dtype=np.float32))
    for role in ("document", "query"):
        given = ["import", "vectors", home / "x.npy", home / "ids.txt", "--role", role, "--output", home / role]
        assert module_retrievo(*given).code == 0
    return home


@pytest.fixture
def search(vectors: Path, retrievo: Callable) -> Callable:
    return lambda output, *flags: retrievo(
        *("search", "--index", vectors / "document", "--queries", vectors / "query", "--output", output), *flags
    )


def written(path: Path, queries: Path, *, force: bool = False, depth: int = 1) -> Output:
    """A run of one row, made as a verb makes it."""
    output = Output(path, "run", {"depth": depth}, {"queries": Input.of(queries)}, force=force, single_file=True)
    assert output.already_finished() is None
    with output.build() as folder:
        writer = RunWriter(folder / path.name, format_of=path)
        writer.write(pa.array(["q1"]), pa.array([f"d{depth}"]), np.ones(1, np.float32), np.ones(1, np.int32))
        writer.close(output.manifest({"rows": 1}))
        output.finish({"rows": 1})
    return output


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": ["q1"], "text": ["wing"]}), tmp_path / "queries.parquet")
    return tmp_path / "queries.parquet"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_search_again_is_already_finished_and_another_is_refused(
    name: str, tmp_path: Path, search: Callable
) -> None:
    made = search(tmp_path / name)
    assert made.code == 0, made.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.manifest.json"]
    before = (tmp_path / name).stat().st_mtime_ns, manifest_beside(tmp_path / name).read_bytes()
    again = search(tmp_path / name)
    assert (again.code, "is already finished; nothing to do" in again.err) == (0, True), again.err
    other = search(tmp_path / name, "--depth", 1)
    assert other.code == 1
    assert "is finished, but depth was 1000 and is now 1; pass --force or another --output" in other.err
    assert before == ((tmp_path / name).stat().st_mtime_ns, manifest_beside(tmp_path / name).read_bytes())
    assert search(tmp_path / name, "--depth", 1, "--force").code == 0
    assert Manifest.read(tmp_path / name, "run").config["depth"] == 1
    assert Run.open(tmp_path / name).table.num_rows == 2


@pytest.mark.parametrize("change", ["other bytes of the same length", "longer", "its manifest is gone"])
def test_a_run_that_somebody_changed_is_not_taken_for_ours(
    change: str, tmp_path: Path, queries: Path, search: Callable
) -> None:
    run = tmp_path / "run.trec"
    assert search(run).code == 0
    text = run.read_text()
    if change.startswith("other"):
        run.write_text(text.replace("1.0", "7.0").replace(" 1 ", " 9 "))
    elif change == "longer":
        run.write_text(text + "q9 Q0 d9 1 0.5 mine\n")
    else:
        manifest_beside(run).unlink()
    edited = run.read_bytes()
    with pytest.raises(RetrievoError):
        Manifest.read(run)
    refused = search(run)
    assert refused.code == 1
    told = "carries no record of how it was made" if "gone" in change else "has changed since retrievo wrote it"
    assert f"{run}: exists already and {told}" in refused.err
    assert refused.err.rstrip().endswith("pass --force to replace it")
    assert run.read_bytes() == edited
    assert search(run, "--force").code == 0
    assert run.read_text() == text
    assert "already finished" in search(run).err


def test_a_run_and_its_manifest_may_be_renamed_together(tmp_path: Path, queries: Path) -> None:
    written(tmp_path / "run.trec", queries)
    for path in sorted(tmp_path.glob("run.trec*")):
        path.rename(path.with_name(path.name.replace("run", "best")))
    assert Manifest.read(tmp_path / "best.trec").input_path("queries", "--queries") == queries


def test_the_texts_of_a_text_run_are_found(tmp_path: Path, queries: Path) -> None:
    output = written(tmp_path / "run.trec", queries)
    assert Texts.of([Run.open(output.path)]).of_queries(["q1"]) == {"q1": "wing"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_text_run_killed_while_it_is_published_is_published_by_the_next_command(
    moves: int, there: bool, tmp_path: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.trec"
    if there:
        written(path, queries)
    real, left = Path.replace, [moves]

    def replace(source: Path, target: Path) -> Path:
        if source.parent.name == "run.trec.partial" and not source.name.startswith("."):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(publishing, "discard", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            written(path, queries, force=there, depth=2)
    again = Output(path, "run", {"depth": 2}, {"queries": Input.of(queries)}, force=there, single_file=True)
    assert again.already_finished() is not None
    assert Run.open(path).table["doc_id"].to_pylist() == ["d2"]
    assert Manifest.read(path).config == {"depth": 2}
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "queries.parquet",
        path.name,
        manifest_beside(path).name,
    ]


def test_patterns_that_find_the_manifests_too_mean_the_runs(tmp_path: Path, queries: Path, retrievo: Callable) -> None:
    for name in ("one.trec", "two.trec"):
        written(tmp_path / "runs" / name, queries)
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\n")
    given = ["--run", *sorted((tmp_path / "runs").glob("*"))]
    assert len(given) == 5
    shown = retrievo("evaluate", *given, "--qrels", tmp_path / "qrels.txt", "--metrics", "mrr@10", "--json")
    assert shown.code == 0, shown.err
    assert list(json.loads(shown.out)) == ["one", "two"]
    joined = Run.open(tmp_path / "runs" / "*")
    assert joined.table.num_rows == 2


def test_json_of_somebody_else_beside_a_run_is_named(tmp_path: Path, queries: Path) -> None:
    written(tmp_path / "run.trec", queries)
    for text in ("{", "[]", '{"files": 3}', "\xff"):
        manifest_beside(tmp_path / "run.trec").write_bytes(text.encode("latin-1"))
        with pytest.raises(RetrievoError, match=r"run.trec.manifest.json: is not the manifest of a file"):
            Manifest.read(tmp_path / "run.trec")
