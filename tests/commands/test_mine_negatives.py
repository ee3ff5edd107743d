"""Mining from the command line: several sources, what lies beside the negatives, and the audit."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retrievo.data.tables import RUN
from retrievo.support.artifact import Manifest


def tables(dataset: Path) -> list[object]:
    return ["--corpus", dataset, "--queries", dataset, "--qrels", dataset / "qrels" / "train.parquet"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: Any, toy_dataset: Path, tiny_model: Path, module_retrievo: Callable) -> Path:
    """Four sources at once, near duplicates and margins looked at."""
    home = tmp_path_factory.mktemp("mined")
    bm25 = ["mine-negatives", *tables(toy_dataset), "--depth", 60, "--samples", 60, "--output", home / "bm25.parquet"]
    assert module_retrievo(*bm25).code == 0
    sources = ["--source", "bm25:4", "--source", "run:3", "--source", "dense:6", "--source", "random:2"]
    made = module_retrievo(
        "mine-negatives",
        *tables(toy_dataset),
        *sources,
        *("--model", tiny_model, "--dtype", "fp32", "--run", home / "bm25.parquet"),
        *("--depth", 40, "--margin", 0.01, "--margin-to", "highest", "--near-duplicate", 0.9),
        *("--output", home / "negatives.parquet"),
    )
    assert made.code == 0, made.err
    assert "margins do not apply to" in made.err
    return home


def test_each_source_gives_its_quota_and_the_table_is_sorted_by_query(mined: Path) -> None:
    rows = pq.read_table(mined / "negatives.parquet").to_pylist()
    counts = Counter((row["query_id"], row["source"]) for row in rows)
    assert {source for _, source in counts} == {"bm25", "dense", "random"}  # those of the table keep their name
    assert max(count for (_, source), count in counts.items() if source == "dense") == 6
    assert max(count for (_, source), count in counts.items() if source == "bm25") == 7
    assert len({(row["query_id"], row["doc_id"]) for row in rows}) == len(rows)
    order = [row["query_id"] for row in rows]
    assert len(list(dict.fromkeys(order))) == len(list(itertools.groupby(order)))


def test_dropped_candidates_lie_beside_with_their_rule_and_are_no_negatives(
    mined: Path, toy_dataset: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    dropped = pq.read_table(mined / "negatives.dropped.parquet").to_pylist()
    stats = Manifest.read(mined / "negatives.parquet", "negatives").stats
    assert Counter(row["rule"] for row in dropped) == stats["dropped"]
    assert {"relevant", "same-text", "margin"} <= stats["dropped"].keys()
    kept = {(row["query_id"], row["doc_id"]) for row in pq.read_table(mined / "negatives.parquet").to_pylist()}
    assert not {(row["query_id"], row["doc_id"]) for row in dropped if row["rule"] == "relevant"} & kept
    trained = retrievo(
        *("train", "--model", tiny_model, *tables(toy_dataset), "--output", tmp_path / "out"),
        *("--negatives", mined / "negatives.dropped.parquet"),
    )
    assert (trained.code, "holds dropped candidates; expected negatives" in trained.err) == (1, True)


def test_the_audit_shows_shares_overlap_and_doubtful_pairs_side_by_side(mined: Path, toy_dataset: Path) -> None:
    text = (mined / "negatives.audit.md").read_text()
    assert "| miner | candidates | kept | unknown | relevant | same-text |" in text
    assert "| | bm25 | " in text
    assert "## Negatives most like the relevant documents" in text
    assert "## Dropped by the rule margin" in text
    queries = pq.read_table(toy_dataset / "queries.parquet")["text"].to_pylist()
    shown = [line for line in text.splitlines() if line.startswith("**")]
    assert 20 < len(shown) <= 60
    assert any(line.startswith(f"**{query}**") for line in shown for query in queries)
    assert text.count("| relevant: d") == len(shown)


def test_mining_again_does_nothing_and_the_same_command_gives_the_same_bytes(
    toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    def command(name: str) -> list[object]:
        sources = ["--source", "bm25:5,random:5"]
        return ["mine-negatives", *tables(toy_dataset), *sources, "--output", tmp_path / name / "n.parquet"]

    for name in ("a", "b"):
        assert retrievo(*command(name)).code == 0
    assert "already finished" in retrievo(*command("a")).err
    for file in ("n.parquet", "n.dropped.parquet", "n.audit.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_teacher_s_run_denoises(toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> None:
    import pyarrow as pa

    first = [
        "mine-negatives",
        *tables(toy_dataset),
        "--depth",
        30,
        "--samples",
        9,
        "--output",
        tmp_path / "first.parquet",
    ]
    assert retrievo(*first).code == 0
    rows = pq.read_table(tmp_path / "first.parquet").to_pylist()
    scores = [
        {key: row[key] for key in ("query_id", "doc_id")} | {"score": float(n % 3), "rank": n}
        for n, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(scores, schema=RUN.arrow), tmp_path / "teacher.parquet")
    again = ["--source", "run", "--run", tmp_path / "first.parquet", "--teacher", tmp_path / "teacher.parquet"]
    made = retrievo(
        *("mine-negatives", *tables(toy_dataset), *again, "--max-teacher-score", 1.5),
        *("--output", tmp_path / "denoised.parquet"),
    )
    assert made.code == 0, made.err
    kept = {(row["query_id"], row["doc_id"]) for row in pq.read_table(tmp_path / "denoised.parquet").to_pylist()}
    assert kept == {(row["query_id"], row["doc_id"]) for row in scores if row["score"] < 1.5}
    assert set(pq.read_table(tmp_path / "denoised.dropped.parquet")["rule"].to_pylist()) == {"teacher"}


def test_an_index_that_is_there_is_searched_instead_of_making_one(
    toy_dataset: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    vectors = ["encode", "--model", tiny_model, "--corpus", toy_dataset, "--dtype", "fp32", "--pooling", "mean"]
    assert retrievo(*vectors, "--output", tmp_path / "vectors").code == 0
    assert retrievo("index", "--type", "bm25", "--corpus", toy_dataset, "--output", tmp_path / "bm25").code == 0
    shared = [*tables(toy_dataset), "--depth", 30, "--samples", 4, "--dtype", "fp32"]
    made = retrievo(
        *("mine-negatives", *shared, "--source", "index", "--output", tmp_path / "n.parquet"),
        *("--index", tmp_path / "bm25", "--index", tmp_path / "vectors"),
    )
    assert made.code == 0, made.err
    assert set(Manifest.read(tmp_path / "n.parquet").inputs) >= {"index-1", "index-2"}
    alone = retrievo("mine-negatives", *shared, "--output", tmp_path / "alone.parquet")
    assert alone.code == 0, alone.err
    ours, theirs = (pq.read_table(tmp_path / name).to_pylist() for name in ("n.parquet", "alone.parquet"))
    assert [row for row in ours if row["source"] == "bm25"] == theirs
    assert Counter(row["source"] for row in ours).keys() == {"bm25", "vectors"}
    refused = retrievo("mine-negatives", *shared, "--source", "index", "--output", tmp_path / "no.parquet")
    assert "--source index: needs an index; pass --index FOLDER" in refused.err


def test_mining_again_in_another_precision_makes_vectors_of_its_own(
    toy_dataset: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--source", "dense", "--model", tiny_model, "--depth", 20, "--samples", 4]
    for dtype in ("fp32", "bf16"):
        made = retrievo(
            *("mine-negatives", *tables(toy_dataset), *flags, "--dtype", dtype),
            *("--output", tmp_path / f"{dtype}.parquet"),
        )
        assert made.code == 0, made.err


def test_a_depth_beyond_the_corpus_and_queries_without_judgments_stop_nothing(
    toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--depth", 5_000, "--samples", 4_000, "--relative-margin", 0.1, "--output", tmp_path / "n.parquet"]
    made = retrievo("mine-negatives", *tables(toy_dataset), *flags)
    assert made.code == 0, made.err
    stats = Manifest.read(tmp_path / "n.parquet", "negatives").stats
    assert stats["queries"] == stats["short"] == 160  # of 240: the others have no relevant document
    nowhere = retrievo(
        "mine-negatives", *tables(toy_dataset), "--min-relevance", 2, "--output", tmp_path / "no.parquet"
    )
    assert "has no relevant document for any query of the table; check --queries and --min-relevance" in nowhere.err


def test_judged_documents_that_the_corpus_lacks_are_counted(
    toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    (tmp_path / "q.txt").write_text("q0 0 d0 1\nq0 0 nowhere 1\nq1 0 nowhere 0\n")
    mine = ["mine-negatives", "--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", tmp_path / "q.txt"]
    for name in ("first", "second"):
        made = retrievo(*mine, "--output", tmp_path / f"{name}.parquet")
        assert made.code == 0, made.err
        assert "left out 1 judgments of documents that are not in the corpus" in made.err
    assert "already finished" in made.err  # the BM25 index
    assert "nothing to do" not in made.err


def test_searches_survive_a_failure_while_negatives_are_chosen(
    toy_dataset: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ["mine-negatives", *tables(toy_dataset), "--depth", 20, "--output", tmp_path / "n.parquet"]
    searched = tmp_path / "n.parquet.partial" / "searched" / "bm25.parquet"

    def stop(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("retrievo.mining.audit.report", stop)
        with pytest.raises(RuntimeError, match="killed"):
            retrievo(*mine)
        kept = searched.read_bytes()
        with pytest.raises(RuntimeError, match="killed"):
            retrievo(*mine, "--k1", 1.5)
        assert searched.read_bytes() != kept, "other options, another search"
    made = retrievo(*mine, "--k1", 1.5)
    assert made.code == 0, made.err
    assert f"{searched} is already finished" in made.err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_two_commands_that_want_one_index_and_one_encoding_at_once_both_end_well(
    toy_dataset: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ["--source", "bm25:4,dense:4", "--model", tiny_model, "--dtype", "fp32", "--depth", 20]
    mine = [sys.executable, "-m", "retrievo", "mine-negatives", *tables(toy_dataset), *flags, "--output"]
    both = [
        subprocess.Popen([*map(str, mine), str(tmp_path / name)], stderr=subprocess.PIPE, text=True)
        for name in ("one.parquet", "two.parquet")
    ]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    one, two = (pq.read_table(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one.equals(two)
    assert sum("waiting for " in text for text in told) == 1
    assert len(list((tmp_path / "cache" / "retrievo" / "bm25").glob("[!.]*"))) == 1


@pytest.mark.slow
def test_mining_killed_and_run_again_ends_in_the_same_negatives(kill_harness: Any, toy_dataset: Path) -> None:
    def command(output: Path) -> list[str]:
        mine = ["mine-negatives", *tables(toy_dataset), "--depth", 30, "--samples", 8, "--output", output]
        return list(map(str, mine))

    def same(reference: Path, other: Path) -> None:
        assert pq.read_table(reference).equals(pq.read_table(other))
        assert [path.name for path in sorted(other.parent.iterdir())] == [
            path.name for path in sorted(reference.parent.iterdir())
        ]

    kill_harness.check(command, kills=2, output="n.parquet", same=same)


@pytest.mark.slow
def test_two_processes_mine_what_one_mines(
    toy_dataset: Path, tiny_model: Path, tmp_path: Path, process: Callable
) -> None:
    import shutil

    for processes in (1, 2):
        model = shutil.copytree(tiny_model, tmp_path / f"model-{processes}")
        (model / "README.md").write_text(f"encoded by {processes}")  # vectors of its own: nothing is found made
        (model / "config.json").write_text((model / "config.json").read_text() + " " * processes)
        flags = [
            "--source",
            "bm25:5,dense:8",
            "--model",
            model,
            "--dtype",
            "fp32",
            "--output",
            tmp_path / f"{processes}.parquet",
        ]
        process(list(map(str, ["mine-negatives", *tables(toy_dataset), "--depth", 40, *flags])), processes=processes)
    one, two = (pq.read_table(tmp_path / f"{processes}.parquet") for processes in (1, 2))
    assert one.equals(two)
    assert set(one["source"].to_pylist()) == {"bm25", "dense"}
