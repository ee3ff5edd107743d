"""Index and search as typed: BM25 and vectors, tables and questions, the same run whatever the way to it."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.data.run import Run, RunWriter
from retrievo.retrieval.fusion import fuse
from retrievo.support.artifact import MANIFEST, Manifest
from retrievo.support.files import HashingFile

TEXTS = ["wing in a slipstream", "boundary layer over a wing", "heat transfer", "wing in a slipstream", ""]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """A corpus with a duplicate and an empty text, queries, a BM25 index, and embeddings with many duplicates."""
    folder = tmp_path_factory.mktemp("house")
    ids = ["a", "b", "c 1", "d", "ü"]
    pq.write_table(pa.table({"id": ids, "title": ["W", "B", "H", "W", ""], "text": TEXTS}), folder / "corpus.parquet")
    pq.write_table(
        pa.table({"id": ["q2", "q1", "q3"], "text": ["heat", "wing slipstream", "zzz"]}), folder / "queries.parquet"
    )
    made = module_retrievo("index", "--type", "bm25", "--corpus", folder, "--output", folder / "bm25")
    assert made.code == 0, made.err
    assert "1 documents have no text" in made.err
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 768)).astype(np.float16)
    np.save(folder / "d.npy", base[rng.integers(0, 60, 2_400)])  # each vector about 40 times
    np.save(folder / "q.npy", rng.standard_normal((25, 768)).astype(np.float16))
    for name, count, role in (("d", 2_400, "document"), ("q", 25, "query")):
        (folder / f"{name}.txt").write_text("".join(f"{name}{number}\n" for number in rng.permutation(count)))
        arguments = (folder / f"{name}.npy", folder / f"{name}.txt", "--output", folder / name, "--role", role)
        made = module_retrievo("import", "vectors", *arguments)
        assert made.code == 0, made.err
    return folder


def test_a_run_has_the_queries_in_their_order(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    out = tmp_path / "out.parquet"
    outcome = retrievo("search", "--index", house / "bm25", "--queries", house, "--output", out)
    assert outcome.code == 0, outcome.err
    found = pq.read_table(out).to_pylist()
    assert [(row["query_id"], row["doc_id"], row["rank"]) for row in found] == [
        ("q2", "c 1", 1),
        ("q1", "a", 1),
        ("q1", "d", 2),
        ("q1", "b", 3),
    ]
    assert "1 queries found nothing" in outcome.err
    assert Manifest.read(out, "run").stats == {"queries": 3, "without_results": 1, "rows": 4}


def test_an_index_knows_its_corpus_and_language(house: Path) -> None:
    manifest = Manifest.read(house / "bm25", "bm25-index")
    assert manifest.input_path("corpus", "--corpus") == house
    assert manifest.config == {
        "type": "bm25",
        "language": "en",
        "title_template": "{title} {text}",
        "term_vectors": False,
    }
    assert manifest.stats["documents"] == 5
    assert manifest.stats["empty"] == 1


def test_a_question_gives_titles_and_snippets(house: Path, retrievo: Callable) -> None:
    outcome = retrievo("search", "slipstreams?", "--index", house / "bm25")
    assert [line.split("\t")[2:] for line in outcome.out.splitlines()] == [["a", "W", TEXTS[0]], ["d", "W", TEXTS[3]]]
    hits = json.loads(retrievo("search", "slipstream", "--index", house / "bm25", "--depth", "1", "--json").out)["hits"]
    assert [(hit["rank"], hit["id"], hit["title"]) for hit in hits] == [(1, "a", "W")]
    assert retrievo("search", "zzz", "--index", house / "bm25").out == "no document matches\n"


def test_a_question_is_answered_where_the_corpus_has_moved(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    shutil.copytree(house / "bm25", tmp_path / "bm25")
    asked = ("search", "slipstream", "--index", tmp_path / "bm25", "--depth", 1)
    outcome = retrievo(*asked)
    assert outcome.out.split("\t")[2:] == ["a", "", "(the text is not at hand: pass --corpus)\n"], outcome.err
    assert retrievo(*asked, "--corpus", house).out.split("\t")[2:] == ["a", "W", f"{TEXTS[0]}\n"]
    for flags in (("--corpus", tmp_path / "gone"), ("--rerank", "any")):
        refused = retrievo(*asked, *flags)
        assert (refused.code, "the corpus" in refused.err) == (1, True), refused.err


def test_k1_and_b_change_the_scores(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    runs = {}
    for name, flags in {
        "default": (),
        "same": ("--k1", "0.9", "--b", "0.4"),
        "k1": ("--k1", "2"),
        "b": ("--b", "1"),
    }.items():
        out = tmp_path / f"{name}.trec.parquet"
        assert retrievo("search", "--index", house / "bm25", "--queries", house, "--output", out, *flags).code == 0
        runs[name] = Run.open(out).table["score"].to_pylist()
    assert runs["default"] == runs["same"]
    assert runs["k1"] != runs["default"] != runs["b"]


def search(retrievo: Callable, index: Path, house: Path, out: Path, *flags: object) -> bytes:
    outcome = retrievo("search", "--index", index, "--queries", house / "q", "--output", out, *flags)
    assert outcome.code == 0, outcome.err
    return out.read_bytes()


def test_the_run_is_the_same_from_any_shards_threads_and_batches(
    house: Path, tmp_path: Path, retrievo: Callable
) -> None:
    reference = search(retrievo, house / "d", house, tmp_path / "run.trec")
    for shards in (1, 2, 16):
        index = tmp_path / f"index-{shards}"
        assert retrievo("index", "--embeddings", house / "d", "--shards", shards, "--output", index).code == 0
        assert len(list(index.glob("*.faiss"))) == shards
        for threads, batch in ((1, 1), (2, 7), (1, 1_000)):
            folder = tmp_path / f"{shards}-{threads}-{batch}"
            folder.mkdir()
            flags = ("--threads", threads, "--batch-size", batch)
            assert search(retrievo, index, house, folder / "run.trec", *flags) == reference


def test_depth_10_is_the_first_10_of_depth_1000(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    deep = search(retrievo, house / "d", house, tmp_path / "run.trec").decode().splitlines()
    (tmp_path / "shallow").mkdir()
    shallow = (
        search(retrievo, house / "d", house, tmp_path / "shallow" / "run.trec", "--depth", 10).decode().splitlines()
    )
    assert shallow == [line for line in deep if int(line.split()[3]) <= 10]


def test_searching_again_does_nothing_and_other_options_are_refused(
    house: Path, tmp_path: Path, retrievo: Callable
) -> None:
    arguments = ("search", "--index", house / "bm25", "--queries", house, "--output", tmp_path / "out.parquet")
    assert retrievo(*arguments).code == 0
    before = (tmp_path / "out.parquet").stat().st_mtime_ns
    again = retrievo(*arguments, "--threads", 1)
    assert again.code == 0
    assert "is already finished" in again.err
    assert (tmp_path / "out.parquet").stat().st_mtime_ns == before
    other = retrievo(*arguments, "--depth", 5)
    assert other.code == 1
    assert "is finished, but depth was 1000 and is now 5" in other.err
    assert retrievo(*arguments, "--depth", 5, "--force").code == 0
    assert not list(tmp_path.glob("*.partial"))


def test_a_faiss_shard_opens_with_faiss(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    faiss = pytest.importorskip("faiss")
    assert retrievo("index", "--embeddings", house / "d", "--output", tmp_path / "index").code == 0
    assert faiss.read_index(str(tmp_path / "index" / "shard-00000.faiss")).ntotal == 2_400
    assert json.loads((tmp_path / "index" / MANIFEST).read_text())["kind"] == "faiss-index"


@pytest.fixture(scope="module")
def untitled(house: Path, tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """A second index of the same corpus, which ranks otherwise."""
    folder = tmp_path_factory.mktemp("untitled") / "bm25"
    flags = ("--title-template", "{text}", "--language", "fr")
    assert module_retrievo("index", "--type", "bm25", "--corpus", house, "--output", folder, *flags).code == 0
    return folder


@pytest.mark.parametrize("method", ["rrf", "zscore"])
def test_several_indexes_give_the_fusion_of_their_runs(
    method: str, house: Path, untitled: Path, tmp_path: Path, retrievo: Callable
) -> None:
    indexes = (house / "bm25", untitled)
    for number, index in enumerate(indexes):
        search(retrievo, index, house, tmp_path / f"{number}.parquet", "--queries", house)
    runs = [pq.read_table(tmp_path / f"{number}.parquet") for number in range(2)]
    queries = pq.read_table(house / "queries.parquet")["id"]
    both = ("--index", indexes[1], "--queries", house, "--fuse", method)
    search(retrievo, indexes[0], house, tmp_path / "fused.parquet", *both)
    fused = pq.read_table(tmp_path / "fused.parquet")
    assert fused.num_rows
    assert fused.to_pylist() == fuse(method, runs, queries=queries).to_pylist()


def test_the_order_of_fused_indexes_does_not_matter_and_weights_do(
    house: Path, untitled: Path, tmp_path: Path, retrievo: Callable
) -> None:
    def run(name: str, *indexes: Path, flags: tuple = ()) -> list[dict]:
        out = tmp_path / f"{name}.parquet"
        more = [part for index in indexes[1:] for part in ("--index", index)]
        search(retrievo, indexes[0], house, out, "--queries", house, *more, *flags)
        return pq.read_table(out).to_pylist()

    one, other = run("one", house / "bm25", untitled), run("other", untitled, house / "bm25")
    assert one == other
    assert run("weighted", house / "bm25", untitled, flags=("--fuse-weights", "3,1")) != one


def test_a_fused_run_is_recognized_and_its_manifest_knows_both_indexes(
    house: Path, untitled: Path, tmp_path: Path, retrievo: Callable
) -> None:
    out = tmp_path / "out.parquet"
    arguments = ("search", "--index", house / "bm25", "--index", untitled, "--queries", house, "--output", out)
    assert retrievo(*arguments).code == 0
    assert {"index-1", "index-2"} <= set(Manifest.read(out).inputs)
    assert "already finished" in retrievo(*arguments).err


def test_a_question_asks_several_indexes(house: Path, untitled: Path, retrievo: Callable) -> None:
    outcome = retrievo("search", "wing slipstream", "--index", house / "bm25", "--index", untitled, "--json")
    assert outcome.code == 0, outcome.err
    hits = json.loads(outcome.out)["hits"]
    assert {hit["id"] for hit in hits[:2]} == {"a", "d"}
    assert hits[0]["score"] == pytest.approx(2 / 61)


def test_fusion_of_one_index_and_wrong_weights_are_usage_errors(
    house: Path, untitled: Path, tmp_path: Path, retrievo: Callable
) -> None:
    one = retrievo("search", "wing", "--index", house / "bm25", "--fuse", "rrf")
    assert (one.code, "--fuse" in one.err) == (2, True)
    weights = ("--fuse-weights", "1,2,3")
    three = retrievo("search", "wing", "--index", house / "bm25", "--index", untitled, *weights)
    assert (three.code, "one for each --index" in three.err) == (2, True)


def test_vectors_of_queries_cannot_ask_bm25(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    indexes = ("--index", house / "d", "--index", house / "bm25")
    outcome = retrievo("search", *indexes, "--queries", house / "q", "--output", tmp_path / "out.parquet")
    assert outcome.code == 1
    assert "pass the table of queries" in outcome.err


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["embeddings", "flat", "ivf"])
def test_a_limit_of_memory_changes_no_byte(kind: str, house: Path, tmp_path: Path, retrievo: Callable) -> None:
    index = house / "d"
    if kind != "embeddings":
        index = tmp_path / kind
        made = retrievo("index", "--embeddings", house / "d", "--type", kind, "--shards", 4, "--output", index)
        assert made.code == 0, made.err
    whole = search(retrievo, index, house, tmp_path / "run.trec", "--depth", 50)
    (tmp_path / "less").mkdir()
    flags = ("--depth", 50, "--memory", "64MB")
    assert search(retrievo, index, house, tmp_path / "less" / "run.trec", *flags) == whole


def test_a_depth_beyond_2048_and_where_faiss_is_not_installed(
    house: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    search(retrievo, house / "d", house, tmp_path / "run.trec", "--depth", 2_300)
    ranks = [int(row[3]) for row in lines(tmp_path / "run.trec")]
    assert ranks == list(range(1, 2_301)) * 25


def test_a_recall_target_is_reached_and_told(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    made = retrievo("index", "--embeddings", house / "d", "--type", "ivf", "--output", tmp_path / "ivf")
    assert made.code == 0, made.err
    search(retrievo, house / "d", house, tmp_path / "exact.trec", "--depth", 20)
    asked = ("search", "--index", tmp_path / "ivf", "--queries", house / "q", "--depth", 20)
    tuned = retrievo(*asked, "--recall-target", 0.99, "--output", tmp_path / "tuned.trec")
    assert tuned.code == 0, tuned.err
    told = re.search(r"recall@20 (\S+) on 25 queries with --nprobe (\d+) --rescore (\d+)", tuned.err)
    assert told, tuned.err
    exact, found = ({(row[0], row[2]) for row in lines(tmp_path / f"{name}.trec")} for name in ("exact", "tuned"))
    assert len(exact & found) / len(exact) == pytest.approx(float(told[1]), abs=1e-4)
    assert float(told[1]) >= 0.99


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """1,300 documents and 8 queries of 16 dimensions, and what exact search finds to the last document."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(4)
    for name, count, role in (("d", 1_300, "document"), ("q", 8, "query")):
        np.save(folder / f"{name}.npy", rng.standard_normal((count, 16)).astype(np.float16))
        (folder / f"{name}.txt").write_text("".join(f"{name}{number}\n" for number in rng.permutation(count)))
        arguments = (folder / f"{name}.npy", folder / f"{name}.txt", "--output", folder / name, "--role", role)
        assert module_retrievo("import", "vectors", *arguments).code == 0
    search(module_retrievo, folder / "d", folder, folder / "exact.trec", "--depth", 1_300)
    return folder


@pytest.mark.parametrize("knob", ["least", "default"])
@pytest.mark.parametrize("name", ["hnsw", "ivf", "ivfpq"])
def test_depth_1000_of_shards_that_have_fewer_gives_exact_scores_in_order_and_no_padding(
    name: str, knob: str, small: Path, tmp_path: Path, retrievo: Callable
) -> None:
    index = tmp_path / "index"
    made = retrievo("index", "--embeddings", small / "d", "--type", name, "--shards", 4, "--output", index)
    assert made.code == 0, made.err
    flags = {"least": ("--ef-search" if name == "hnsw" else "--nprobe", 1), "default": ()}[knob]
    exact = {(row[0], row[2]): row[4] for row in lines(small / "exact.trec")}
    found = search(retrievo, index, small, tmp_path / "run.trec", "--threads", 1, *flags)
    (tmp_path / "again").mkdir()
    more = ("--threads", 2, "--memory", "64MB", *flags)
    assert search(retrievo, index, small, tmp_path / "again" / "run.trec", *more) == found
    rows = lines(tmp_path / "run.trec")
    assert [row[4] for row in rows] == [exact[row[0], row[2]] for row in rows]
    assert len({(row[0], row[2]) for row in rows}) == len(rows)
    for query in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == query]
        assert [int(row[3]) for row in own] == list(range(1, len(own) + 1))
        order = [document for asked, document in exact if asked == query]
        assert sorted([row[2] for row in own], key=order.index) == [row[2] for row in own]
        assert len(own) < 1_000 if knob == "least" else 325 < len(own) <= 1_000


PLANE = {"a": (4, 4), "b": (3, 0), "c": (0, 8), "d": (2, 0)}  # documents; the query is (1, 0), which finds a b d c


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """Four documents and a query in two dimensions, where feedback can be worked out by hand, and a run of one."""
    folder = tmp_path_factory.mktemp("plane")
    for role, vectors in (("document", PLANE), ("query", {"q": (1, 0)})):
        np.save(folder / f"{role}.npy", np.array(list(vectors.values()), np.float32))
        (folder / f"{role}.txt").write_text("".join(f"{name}\n" for name in vectors))
        files = (folder / f"{role}.npy", folder / f"{role}.txt")
        made = module_retrievo("import", "vectors", *files, "--output", folder / role, "--role", role)
        assert made.code == 0, made.err
    (folder / "c.trec").write_text("q Q0 c 1 9.0 other\n")
    return folder


FUSED = ("--feedback-from", "fused", "--run")
FED_BACK = {
    "nothing: (1, 0)": ((), {"a": 4, "b": 3, "d": 2, "c": 0}),
    "average of a: (2.5, 2)": (("average", 1), {"a": 18, "c": 16, "b": 7.5, "d": 5}),
    "average of a b d: (2.5, 1), by default": (("average",), {"a": 14, "c": 8, "b": 7.5, "d": 5}),
    "rocchio with a: (2.5, 2)": (("rocchio", 1, "--feedback-weight", 0.5), {"a": 18, "c": 16, "b": 7.5, "d": 5}),
    "rocchio with a, less: (1.75, 1)": (
        ("rocchio", 1, "--feedback-weight", 0.25),
        {"a": 11, "c": 8, "b": 5.25, "d": 3.5},
    ),
    "rocchio with a and b, by default half: (2.25, 1)": (("rocchio", 2), {"a": 13, "c": 8, "b": 6.75, "d": 4.5}),
    "average of a, then the run (c) fused": (
        ("average", 1, "--run"),
        {"c": 1 / 61 + 1 / 62, "a": 1 / 61, "b": 1 / 63, "d": 1 / 64},
    ),
    "average of c, the first of the fusion: (0.5, 4)": (
        ("average", 1, *FUSED),
        {"c": 2 / 61, "a": 1 / 62, "b": 1 / 63, "d": 1 / 64},
    ),
}


@pytest.mark.parametrize(("asked", "expected"), FED_BACK.values(), ids=FED_BACK)
def test_feedback_moves_the_query_as_worked_out_by_hand(
    asked: tuple, expected: dict[str, float], plane: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = [
        part for flag, value in zip(("--feedback", "--feedback-depth"), asked, strict=False) for part in (flag, value)
    ]
    more = [*asked[2:], *([plane / "c.trec"] if "--run" in asked else [])]
    out = tmp_path / "out.parquet"
    found = retrievo(
        "search", "--index", plane / "document", "--queries", plane / "query", "--output", out, *flags, *more
    )
    assert found.code == 0, found.err
    rows = pq.read_table(out).to_pylist()
    assert [row["doc_id"] for row in rows] == list(expected)
    assert [row["score"] for row in rows] == pytest.approx(list(expected.values()), rel=1e-6)


WORDS = {"d1": "wing wing alpha alpha alpha beta", "d2": "wing gamma gamma", "ma": "alpha", "mb": "beta", "mg": "gamma"}
WORDS |= {f"f{number}": f"filler{number} noise{number}" for number in range(45)}  # RM3 takes rare words only


def bm25_of(document: str, weights: dict[str, float]) -> float:
    """The formula of `BM25Index.search` over WORDS, for a query of weighted words."""
    texts = [text.split() for text in WORDS.values()]
    own, mean = WORDS[document].split(), sum(map(len, texts)) / len(texts)
    score = 0.0
    for word, weight in weights.items():
        holding, count = sum(word in text for text in texts), own.count(word)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        score += weight * idf * count / (count + 0.9 * (0.6 + 0.4 * len(own) / mean))
    return score


def relevance_model(*, documents: int, words: int, weight: float) -> dict[str, float]:
    """Words of the query "wing" after RM3: weight x its own + (1 - weight) x those of d1, and d2, by their scores."""
    found = {name: bm25_of(name, {"wing": 1.0}) for name in ("d1", "d2")[:documents]}
    model: dict[str, float] = {}
    for name, score in found.items():
        counts = Counter(WORDS[name].split())
        best = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:words])
        for word, count in best.items():
            model[word] = model.get(word, 0) + score / sum(found.values()) * count / sum(best.values())
    best = dict(sorted(model.items(), key=lambda item: -item[1])[:words])
    own = {"wing": weight}
    return {word: own.get(word, 0) + (1 - weight) * best.get(word, 0) / sum(best.values()) for word in {**own, **best}}


@pytest.mark.parametrize(
    ("documents", "words", "weight", "found"),
    [
        (1, 10, 0.5, ["d1", "d2", "ma", "mb"]),
        (1, 2, 0.5, ["d1", "d2", "ma"]),
        (2, 10, 0.5, ["d1", "d2", "mg", "ma", "mb"]),
        (2, 2, 0.25, ["d1", "d2", "ma"]),
        (2, 10, 0.0, ["d1", "d2", "mg", "ma", "mb"]),
    ],
)
def test_rm3_finds_by_the_words_that_were_worked_out_by_hand(
    documents: int, words: int, weight: float, found: list[str], worded: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """`ma`, `mb` and `mg` lack the query's word: they are found by a word of d1 or of d2 alone."""
    asked = ("search", "--queries", worded, "--index", worded / "bm25", "--rm3", "--rm3-documents", documents)
    asked += ("--rm3-words", words, "--rm3-weight", weight, "--output", tmp_path / "out.parquet")
    made = retrievo(*asked)
    assert made.code == 0, made.err
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["doc_id"] for row in rows] == found
    weights = relevance_model(documents=documents, words=words, weight=weight)
    assert [row["score"] for row in rows] == pytest.approx([bm25_of(name, weights) for name in found], abs=2e-4)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory, module_retrievo: Callable) -> Path:
    """WORDS with the query "wing", and a BM25 index with term vectors."""
    folder = tmp_path_factory.mktemp("worded")
    columns = {"id": list(WORDS), "title": [""] * len(WORDS), "text": list(WORDS.values())}
    pq.write_table(pa.table(columns), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": ["q"], "text": ["wing"]}), folder / "queries.parquet")
    flags = ("--type", "bm25", "--corpus", folder, "--term-vectors", "--output", folder / "bm25")
    assert module_retrievo("index", *flags).code == 0
    return folder


def test_rm3_is_off_by_default_and_asks_for_term_vectors(
    house: Path, worded: Path, tmp_path: Path, retrievo: Callable
) -> None:
    plain = retrievo("search", "--queries", worded, "--index", worded / "bm25", "--output", tmp_path / "plain.parquet")
    assert plain.code == 0, plain.err
    assert pq.read_table(tmp_path / "plain.parquet")["doc_id"].to_pylist() == ["d1", "d2"]
    asked = ("search", "--queries", house, "--index")
    refused = retrievo(*asked, house / "bm25", "--rm3", "--output", tmp_path / "no.parquet")
    assert (refused.code, "build the index with --term-vectors" in refused.err) == (1, True)
    dense = retrievo(
        "search", "--index", house / "d", "--queries", house / "q", "--rm3", "--output", tmp_path / "x.trec"
    )
    assert (dense.code, "--rm3: does not apply" in dense.err) == (2, True)


def test_passages_become_documents(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    ids = ["a#0", "a#1", "b#0", "b#1", "c"]
    pq.write_table(pa.table({"id": ids, "text": TEXTS}), tmp_path / "corpus.parquet")
    made = retrievo("index", "--type", "bm25", "--corpus", tmp_path, "--output", tmp_path / "bm25")
    assert made.code == 0, made.err
    search(retrievo, tmp_path / "bm25", house, tmp_path / "run.trec", "--queries", house, "--doc-aggregate", "max")
    assert [(row[0], row[2], row[3]) for row in lines(tmp_path / "run.trec")] == [
        ("q2", "b", "1"),
        ("q1", "a", "1"),
        ("q1", "b", "2"),
    ]


def test_matches_are_looked_for_in_the_beginning_of_a_long_text(
    house: Path, retrievo: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every word costs a call of Java: a book would take seconds for each hit."""
    from retrievo.retrieval import snippets
    from retrievo.retrieval.bm25 import BM25Index

    looked_at, find = [], BM25Index.matches

    def matches(self: BM25Index, query: str, text: str) -> list[tuple[int, int]]:
        looked_at.append(text)
        return find(self, query, text)

    monkeypatch.setattr(BM25Index, "matches", matches)
    monkeypatch.setattr(snippets, "LOOKED_AT", 10)
    assert retrievo("search", "transfer of heat", "--index", house / "bm25").code == 0
    assert looked_at == ["heat trans"]


def test_bytes_that_the_terminal_did_not_know_are_read_as_utf8(house: Path, retrievo: Callable) -> None:
    told = retrievo("search", "\udcc3\udcbc wing \udcff \ud800", "--index", house / "bm25", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["question"] == "ü wing \ufffd \ufffd"


def test_adding_to_an_index_whose_vectors_were_moved_advises_what_can_be_done(
    tmp_path: Path, retrievo: Callable
) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.ones((1, 4), np.float32))
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
        arrays = (tmp_path / f"{name}.npy", tmp_path / f"{name}.txt")
        assert retrievo("import", "vectors", *arrays, "--output", tmp_path / "vectors" / name).code == 0
    made = ("--output", tmp_path / "index")
    assert retrievo("index", "--embeddings", tmp_path / "vectors" / "a", *made).code == 0
    (tmp_path / "vectors" / "a").rename(tmp_path / "vectors" / "elsewhere")
    told = retrievo("index", "--embeddings", tmp_path / "vectors" / "b", "--add", *made)
    assert (told.code, "put it back, or into" in told.err, "pass --" in told.err) == (1, True, False)


def test_questions_are_asked_one_after_another_until_an_empty_line(
    house: Path, untitled: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("slipstream\nheat\n\nnever asked\n"))
    outcome = retrievo("search", "--interactive", "--index", house / "bm25", "--index", untitled, "--json")
    assert outcome.code == 0, outcome.err
    answers, rest = [], outcome.out
    while rest.strip():
        answer, end = json.JSONDecoder().raw_decode(rest.lstrip())
        answers, rest = [*answers, answer], rest.lstrip()[end:]
    assert [answer["question"] for answer in answers] == ["slipstream", "heat"]
    names = [str(house / "bm25"), str(untitled)]
    assert answers[1]["hits"][0]["ranks"] == dict.fromkeys(names, 1)


def test_a_search_during_a_rebuild_reads_the_old_index(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    """A build that was killed half-way and one that is under way leave the same: a folder beside the finished one."""
    flags = ("--embeddings", house / "d", "--output", tmp_path / "index")
    assert retrievo("index", *flags).code == 0
    before = search(retrievo, tmp_path / "index", house, tmp_path / "run.trec", "--depth", 10)
    seen = {}

    def during(*_: object, **__: object) -> None:
        (tmp_path / "during").mkdir()
        seen["run"] = search(retrievo, tmp_path / "index", house, tmp_path / "during" / "run.trec", "--depth", 10)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrievo.retrieval.faiss_build._write_ids", during)
        assert retrievo("index", *flags, "--type", "sq8", "--force").code == 130
    assert seen["run"] == before
    assert Manifest.read(tmp_path / "index").stats["type"] == "flat"


def test_an_addition_after_a_swap_that_was_cut_short(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    """What a kill between the two renames of a rebuild leaves: the old index alone, under its other name."""
    index, more = tmp_path / "index", tmp_path / "more"
    assert retrievo("index", "--embeddings", house / "d", "--output", index).code == 0
    (tmp_path / "more.txt").write_text("".join(f"more{number}\n" for number in range(25)))
    assert retrievo("import", "vectors", house / "q.npy", tmp_path / "more.txt", "--output", more).code == 0
    index.rename(tmp_path / "index.old")
    added = retrievo("index", "--embeddings", more, "--add", "--output", index)
    assert added.code == 0, added.err
    assert Manifest.read(index).stats["rows"] == 2_425
    assert not (tmp_path / "index.old").exists()


def test_an_option_of_0_is_other_work_than_one_that_is_unset(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    index, out = tmp_path / "binary", tmp_path / "out.parquet"
    assert retrievo("index", "--embeddings", house / "d", "--type", "binary", "--output", index).code == 0
    search(retrievo, index, house, out, "--depth", 5, "--rescore", 0)
    assert Manifest.read(out).config["rescore"] == 0
    again = retrievo("search", "--index", index, "--queries", house / "q", "--output", out, "--depth", 5)
    assert (again.code, "rescore was 0 and is now null" in again.err) == (1, True)


@pytest.fixture
def nobody(tmp_path: Path, retrievo: Callable) -> Path:
    """Vectors of no queries."""
    np.save(tmp_path / "nobody.npy", np.zeros((0, 768), np.float16))
    (tmp_path / "nobody.txt").write_text("")
    flags = ("--role", "query", "--output", tmp_path / "nobody")
    made = retrievo("import", "vectors", tmp_path / "nobody.npy", tmp_path / "nobody.txt", *flags)
    assert made.code == 0, made.err
    return tmp_path / "nobody"


@pytest.mark.parametrize("feedback", [(), ("own",), ("fused",)])
def test_no_queries_find_nothing_in_several_indexes(
    feedback: tuple[str, ...], house: Path, nobody: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = [part for source in feedback for part in ("--feedback", "average", "--feedback-from", source)]
    asked = ("search", "--index", house / "d", "--index", house / "d", "--queries", nobody)
    outcome = retrievo(*asked, *flags, "--output", tmp_path / "out.parquet")
    assert outcome.code == 0, outcome.err
    assert Manifest.read(tmp_path / "out.parquet").stats == {"queries": 0, "without_results": 0, "rows": 0}


def test_depth_5_of_a_fusion_is_the_first_5_of_depth_100(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    """What one run ranks low another ranks high: two runs in opposite orders."""
    orders = {"up": range(1, 61), "down": range(60, 0, -1)}
    for name, order in orders.items():
        rows = [f"q0 Q0 d{number} {rank} {-rank} x\n" for rank, number in enumerate(order, start=1)]
        (tmp_path / f"{name}.trec").write_text("".join(rows))
    runs = [part for name in orders for part in ("--run", tmp_path / f"{name}.trec")]
    found = {}
    for depth in (5, 100):
        (tmp_path / str(depth)).mkdir()
        out = tmp_path / str(depth) / "fused.trec"
        outcome = retrievo("search", *runs, "--queries", house / "q", "--depth", depth, "--output", out)
        assert outcome.code == 0, outcome.err
        found[depth] = lines(out)
    assert found[5] == found[100][:5]


@pytest.mark.parametrize("name", ["out.parquet", "out.trec", "out.trec.gz"])
def test_a_search_that_fails_midway_closes_its_run(
    name: str, house: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[HashingFile] = []
    init = HashingFile.__init__

    def opening(file: HashingFile, path: Path) -> None:
        init(file, path)
        opened.append(file)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HashingFile, "__init__", opening)
    monkeypatch.setattr(RunWriter, "write", fail)
    outcome = retrievo("search", "--index", house / "d", "--queries", house / "q", "--output", tmp_path / name)
    assert outcome.code == 130
    assert [file.closed for file in opened] == [True]
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_has_changed_since_is_told(house: Path, tmp_path: Path, retrievo: Callable) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["heat"]}), corpus)
    assert retrievo("index", "--type", "bm25", "--corpus", tmp_path, "--output", tmp_path / "bm25").code == 0
    table = ["--queries", house, "--output", tmp_path / "runs" / "run.parquet"]
    for asked in (["heat"], table):
        assert "warning" not in retrievo("search", *asked, "--index", tmp_path / "bm25").err
    pq.write_table(pa.table({"id": ["a"], "text": ["cold"]}), corpus)
    for asked in (["heat"], [*table, "--force"]):
        outcome = retrievo("search", *asked, "--index", tmp_path / "bm25")
        assert outcome.code == 0
        assert "bm25: its corpus has changed since it was made; make it again with --force" in outcome.err
        assert "warning" not in retrievo("search", *asked, "--index", tmp_path / "bm25", "--corpus", tmp_path).err
    corpus.unlink()
    outcome = retrievo("search", *table, "--force", "--index", tmp_path / "bm25")
    assert (outcome.code, "warning" in outcome.err) == (0, False)
