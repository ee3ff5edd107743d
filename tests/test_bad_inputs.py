"""Every bad input gives one line that says where, what was found and what to do, and leaves nothing half-written.

The table below is also what docs/errors.md promises: a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Make = Callable[[Path], list[object]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data, from which each case takes what it does not break."""
    folder = tmp_path_factory.mktemp("house")
    rng = np.random.default_rng(0)
    table(folder / "corpus.parquet", id=["d1", "d2", "d3"], text=["wing in a slipstream", "boundary layer", "heat"])
    table(folder / "queries.parquet", id=["q1", "q2"], text=["slipstream", "heat"])
    table(
        folder / "qrels" / "test.parquet",
        query_id=["q1", "q2"],
        doc_id=["d1", "d3"],
        relevance=pa.array([1, 1], pa.int32()),
    )
    (folder / "run.trec").write_text("q1 Q0 d1 1 2.5 x\nq2 Q0 d3 1 2.5 x\n")
    for name, rows in (("documents", 3), ("questions", 2), ("narrow", 2)):
        np.save(folder / f"{name}.npy", rng.standard_normal((rows, 2 if name == "narrow" else 4)).astype(np.float32))
        (folder / f"{name}.txt").write_text("".join(f"{name[0]}{n}\n" for n in range(rows)))
    return folder


def table(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def vectors(folder: Path, array: object, ids: str = "a\nb\n") -> list[object]:
    np.save(folder / "x.npy", array, allow_pickle=True)
    return ["import", "vectors", folder / "x.npy", text(folder / "ids.txt", ids), "--output", folder / "out"]


def index_corpus(folder: Path, **columns: object) -> list[object]:
    return ["index", "--type", "bm25", "--corpus", table(folder / "c.parquet", **columns), "--output", folder / "out"]


def dense(folder: Path, *more: object, index: str = "documents") -> list[object]:
    """A search for the vectors of the house."""
    asked = ["search", "--index", HOUSE / index, "--queries", HOUSE / "questions", "--output", folder / "out.trec"]
    return [*asked, *more]


def lexical(folder: Path, *more: object) -> list[object]:
    """A search for the words of the house."""
    return ["search", "--index", HOUSE / "bm25", "--queries", HOUSE, "--output", folder / "out.trec", *more]


def evaluate(folder: Path, run: str, qrels: str = "q1 0 d1 1\n", *more: object) -> list[object]:
    runs = text(folder / "r.trec", run)
    return ["evaluate", "--run", runs, "--qrels", text(folder / "q.txt", qrels), *more]


def answered(folder: Path, query_ids: list[str], *more: object) -> list[object]:
    answers = table(folder / "a.parquet", query_id=query_ids, answers=[["heat"]] * len(query_ids))
    return evaluate(
        folder, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "answer-recall@5", "--answers", answers, *more
    )


def settings(folder: Path, content: str) -> list[object]:
    return ["evaluate", "--config", text(folder / "s.toml", content), "--run", HOUSE / "run.trec", "--qrels", HOUSE]


def lying_here(folder: Path, content: str) -> list[object]:
    text(folder / "retrievo.toml", content)
    return ["evaluate", "--run", HOUSE / "run.trec", "--qrels", HOUSE]


def splits(folder: Path) -> Path:
    for split in ("test", "train"):
        table(folder / f"{split}.parquet", query_id=[split], doc_id=["d"], relevance=pa.array([1], pa.int32()))
    return folder


def dataset(folder: Path, *split: str) -> Path:
    """A dataset folder with judgments of these splits."""
    table(folder / "data" / "corpus.parquet", id=["d"], text=["x"])
    table(folder / "data" / "queries.parquet", id=["q"], text=["x"])
    for name in split:
        path = folder / "data" / "qrels" / f"{name}.parquet"
        table(path, query_id=["q"], doc_id=["d"], relevance=pa.array([1], pa.int32()))
    return folder / "data"


def on_data(folder: Path, *typed: object) -> list[object]:
    """A search for queries of a dataset."""
    return ["search", "--index", HOUSE / "bm25", "--output", folder / "out.trec", "--data", *typed]


HOUSE = Path("HOUSE")  # stands for the fixture's folder in the table below
INDEX = ["index", "--type", "bm25", "--corpus"]
TABLES = ["--corpus", HOUSE, "--queries", HOUSE, "--qrels", HOUSE / "qrels" / "test.parquet"]
NAN = np.array([[1, np.nan], [1, 2]], np.float32)

# what is wrong -> (command in a fresh folder, exit code, what the one line says)
CASES: dict[str, tuple[Make, int, str]] = {
    # tables
    "missing column": (
        lambda f: index_corpus(f, id=["a"], body_text=["x"]),
        1,
        "c.parquet: has no column 'text' (it has: id, body_text)",
    ),
    "column of the wrong type": (
        lambda f: index_corpus(f, id=["a"], text=[1.5]),
        1,
        "column 'text' is of type double; expected string",
    ),
    "missing id": (lambda f: index_corpus(f, id=["a", None], text=["x", "y"]), 1, "column 'id' is empty in row 2"),
    "empty id": (lambda f: index_corpus(f, id=["a", ""], text=["x", "y"]), 1, "column 'id' is empty in row 2"),
    "id that Lucene can't hold": (
        lambda f: index_corpus(f, id=["a", "x" * 32_767], text=["x", "y"]),
        1,
        f"document 2: its id has 32,767 bytes ('{'x' * 40}...'); expected at most 32,766, as Lucene has it; shorten it",
    ),
    "index of no documents": (
        lambda f: index_corpus(f, id=pa.array([], pa.string()), text=pa.array([], pa.string())),
        1,
        "c.parquet: the corpus has no rows; check the path",
    ),
    "vectors of no documents": (
        lambda f: [
            *("encode", "--model", f, "--output", f / "out"),
            *("--corpus", table(f / "c.parquet", id=pa.array([], pa.string()), text=pa.array([], pa.string()))),
        ],
        1,
        "c.parquet: the corpus has no rows; check the path",
    ),
    "duplicate document id": (
        lambda f: index_corpus(f, id=["a", "b", "a"], text=["x", "y", "z"]),
        1,
        "id 'a' occurs twice (rows 1 and 3)",
    ),
    "duplicate query id": (
        lambda f: [
            "search",
            "--index",
            HOUSE / "bm25",
            "--queries",
            table(f / "q.parquet", id=["a", "a"], text=["x", "y"]),
            "--output",
            f / "out.trec",
        ],
        1,
        "query id 'a' occurs twice",
    ),
    "truncated Parquet": (
        lambda f: ["index", "--type", "bm25", "--corpus", text(f / "c.parquet", b"PAR1xxxx"), "--output", f / "out"],
        1,
        "c.parquet: is not a readable Parquet file; expected the corpus",
    ),
    "JSON Lines where Parquet is read": (
        lambda f: ["index", "--type", "bm25", "--corpus", text(f / "c.jsonl", "{}"), "--output", f / "out"],
        1,
        "import it first: retrievo import jsonl",
    ),
    "corpus that is not there": (
        lambda f: ["index", "--type", "bm25", "--corpus", f / "no.parquet", "--output", f / "out"],
        1,
        "no.parquet: no such file or folder; expected the corpus",
    ),
    "folder without tables": (
        lambda f: ["index", "--type", "bm25", "--corpus", f, "--output", f / "out"],
        1,
        "holds no Parquet file for the corpus; import the data first, or pass another path",
    ),
    # a dataset folder
    "search of a dataset without judgments": (
        lambda f: on_data(f, dataset(f)),
        1,
        "data: is a dataset without relevance judgments; pass --queries ",
    ),
    "search of a dataset with other splits": (
        lambda f: on_data(f, dataset(f, "train")),
        1,
        "qrels: has neither test.parquet nor dev.parquet (it holds train.parquet); name another split or file",
    ),
    "split that is not there": (
        lambda f: on_data(f, dataset(f, "dev", "test"), "--split", "validation"),
        1,
        "validation.parquet: no such file; ",
    ),
    "dataset that is not there": (
        lambda f: on_data(f, f / "no"),
        1,
        "no: no such file or folder; expected the queries; check the path",
    ),
    "file where a dataset is meant": (
        lambda f: on_data(f, dataset(f, "test") / "queries.parquet"),
        2,
        "queries.parquet', which is a file; expected a dataset folder; pass --data ",
    ),
    "foreign file where a dataset is meant": (
        lambda f: ["index", "--data", text(f / "c.jsonl", "{}"), "--output", f / "out"],
        2,
        "c.jsonl', which is a file; expected a dataset folder; import it first: retrievo import jsonl ",
    ),
    "dataset that was not imported": (
        lambda f: ["index", "--data", text(f / "beir" / "corpus.jsonl", "{}").parent, "--output", f / "out"],
        1,
        "holds no Parquet file for the corpus; import the data first: retrievo import beir ",
    ),
    "index where a dataset is meant": (
        lambda f: ["index", "--data", HOUSE / "bm25", "--output", f / "out"],
        1,
        "bm25: is of kind 'bm25-index'; expected the corpus; check the path",
    ),
    "index where a run is meant": (
        lambda f: ["evaluate", "--run", HOUSE / "bm25", "--data", HOUSE],
        1,
        "bm25: is of kind 'bm25-index'; expected the run; check the path",
    ),
    "index of nothing": (
        lambda f: ["index", "--output", f / "out"],
        2,
        "index: nothing to index; pass --data DATASET to index texts (BM25), or --embeddings FOLDER to index vectors",
    ),
    "vectors of a dataset where texts are": (
        lambda f: ["index", "--data", dataset(f), "--type", "flat", "--output", f / "out"],
        2,
        "--type flat: needs vectors; pass --embeddings FOLDER, or --type bm25",
    ),
    "training where there is only a test split": (
        lambda f: ["train", "--data", dataset(f, "test"), "--model", f, "--output", f / "out"],
        1,
        "pass a file of judgments, or --split test where nothing is evaluated on it",
    ),
    "training without judgments": (
        lambda f: ["train", "--data", dataset(f), "--model", f, "--output", f / "out"],
        1,
        "has corpus.parquet, queries.parquet and no relevance judgments; pass a file of judgments",
    ),
    "evaluation of a dataset without judgments": (
        lambda f: ["evaluate", "--data", dataset(f), "--run", HOUSE / "run.trec"],
        1,
        "data: holds no Parquet file for the qrels (it holds corpus.parquet, queries.parquet); ",
    ),
    "question beside a dataset": (
        lambda f: ["search", "a question", "--index", HOUSE / "bm25", "--data", dataset(f)],
        2,
        "--data: applies only without a QUESTION",
    ),
    # runs and judgments
    "a folder of several splits where one table of judgments is meant": (
        lambda f: [*evaluate(f, "q1 Q0 d1 1 2 x\n")[:-1], splits(f / "qrels")],
        1,
        "qrels: holds several tables of qrels (test.parquet, train.parquet); expected one of them; name it: --qrels ",
    ),
    "folder of other tables": (
        lambda f: [*INDEX, table(f / "c" / "queries.parquet", id=["q"], text=["x"]).parent, "--output", f / "out"],
        1,
        "c: holds no Parquet file for the corpus (it holds queries.parquet)",
    ),
    "run with a short line": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2.5 x\nq1 Q0 d2\n"),
        1,
        "r.trec line 2: found 3 fields; expected query_id Q0 doc_id rank score tag",
    ),
    "score that is no number": (
        lambda f: evaluate(f, "q1 Q0 d1 1 high x\n"),
        1,
        "r.trec line 1: score is 'high'; expected a number",
    ),
    "score that is not finite": (lambda f: evaluate(f, "q1 Q0 d1 1 nan x\n"), 1, "score nan"),
    "document twice for a query": (lambda f: evaluate(f, "q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n"), 1, "d1"),
    "run of other queries": (lambda f: evaluate(f, "q7 Q0 d1 1 2 x\n"), 1, "none of its 1 queries is judged"),
    "run that is not text": (lambda f: evaluate(f, b"\xff\xfe\x00"), 1, "r.trec: can't be read as text"),  # type: ignore[arg-type]
    "run that is not there": (
        lambda f: ["evaluate", "--run", f / "no.trec", "--qrels", HOUSE],
        1,
        "no.trec: no such file or folder; expected the run",
    ),
    "pair judged twice": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\nq1 0 d1 2\n"),
        1,
        "query 'q1' and document 'd1' are judged 2 times",
    ),
    "grade that is no number": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 good\n"),
        1,
        "q.txt line 1: relevance is 'good'; expected a whole number",
    ),
    "empty judgments": (lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "\n"), 1, "q.txt"),
    "judgments with two columns": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 d1\n"),
        1,
        "its first line has 2 fields",
    ),
    "no run at all": (lambda f: ["evaluate", "--qrels", HOUSE], 2, "--run: no run to score"),
    # metrics
    "unknown metric": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "ndgc@10"),
        2,
        "metric 'ndgc@10': unknown name; did you mean 'ndcg@10'?",
    ),
    "metric without its cutoff": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "recall"),
        2,
        "lacks its cutoff; write it as recall@10",
    ),
    "cutoff of 0": (lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "p@0"), 2, "its cutoff is 0"),
    "nb-recall without its other run": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "nb-recall-5@10"),
        2,
        "pass the first one with --reference-run",
    ),
    # options
    "unknown convention": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--convention", "trec"),
        2,
        "--convention: found 'trec'; did you mean 'trec_eval'?",
    ),
    "ranks that are none under the convention that goes by ranks": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\nq1 Q0 d2 1 1 x\n", "q1 0 d1 1\n", "--convention", "msmarco"),
        1,
        "r: its rank column has no valid ranks",
    ),
    "answer recall without answers": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--metrics", "answer-recall@5"),
        2,
        "--metrics: answer-recall needs answers; pass their table with --answers",
    ),
    "answers without texts to look into": (
        lambda f: answered(f, ["q1"]),
        2,
        "--answers: no texts to look for answers in; pass --corpus",
    ),
    "answers to other queries": (
        lambda f: answered(f, ["q7"], "--corpus", HOUSE),
        1,
        "has no answers for the judged queries",
    ),
    "a query whose answers stand in two rows": (
        lambda f: answered(f, ["q1", "q1"], "--corpus", HOUSE),
        1,
        "a.parquet: has a query twice",
    ),
    "answers that are not there": (
        lambda f: answered(f, ["q1"], "--corpus", HOUSE, "--answers", f / "no.parquet"),
        1,
        "no.parquet: no such file or folder; expected the answers; check the path",
    ),
    "report that is no page": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--report", "r.pdf"),
        2,
        "--report: found 'r.pdf'; expected a file that ends in .html",
    ),
    "values of queries in no table": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--per-query", "q.csv"),
        2,
        "--per-query: found 'q.csv'; expected a file that ends in .parquet",
    ),
    "unknown form of the numbers": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--format", "markdwon"),
        2,
        "--format: found 'markdwon'; did you mean 'markdown'?",
    ),
    # evaluate --suite and --known-item
    "suite that is not there": (
        lambda f: ["evaluate", "--suite", f / "none", "--model", "m"],
        1,
        "none: no such folder",
    ),
    "suite without a dataset": (
        lambda f: ["evaluate", "--suite", f"{HOUSE}/qrels", "--model", "m"],
        1,
        "holds no dataset; expected folders with corpus.parquet, queries.parquet and qrels/test.parquet",
    ),
    "suite without a model": (
        lambda f: ["evaluate", "--suite", HOUSE],
        2,
        "--model: no model to evaluate; pass --model FOLDER or a hub name",
    ),
    "suite and a run": (
        lambda f: ["evaluate", "--suite", HOUSE, "--model", "m", "--run", HOUSE / "run.trec"],
        2,
        "--model: applies only without --run",
    ),
    "suite and known items": (
        lambda f: ["evaluate", "--suite", HOUSE, "--known-item", "span", "--model", "m"],
        2,
        "--suite",
    ),
    "dataset that is not in the suite": (
        lambda f: ["evaluate", "--suite", f"{HOUSE}/..", "--model", "m", "--exclude-self-of", "arguana"],
        2,
        "--exclude-self-of: found 'arguana'; expected one of ",
    ),
    "model for runs that are there": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--model", "m"),
        2,
        "--model: applies only without --run",
    ),
    "depth for runs that are there": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--depth", 1),
        2,
        "--depth: applies only without --run",
    ),
    "folder for runs that are there": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--output", f / "results.json"),
        2,
        "--output: applies only without --run",
    ),
    "number of known items that nobody makes": (
        lambda f: evaluate(f, "q1 Q0 d1 1 2 x\n", "q1 0 d1 1\n", "--known-items", 5),
        2,
        "--known-items: applies only with --known-item",
    ),
    "corpus beside those of a suite": (
        lambda f: ["evaluate", "--suite", HOUSE, "--model", "m", "--corpus", HOUSE],
        2,
        "--corpus: applies only without --suite",
    ),
    "changed queries of a suite": (
        lambda f: ["evaluate", "--suite", HOUSE, "--model", "m", "--changed", 3],
        2,
        "--changed: applies only without --suite",
    ),
    "known items of no corpus": (
        lambda f: ["evaluate", "--known-item", "span", "--model", "m"],
        2,
        "--known-item: no documents to ask for; pass --corpus",
    ),
    "known items by titles that are not there": (
        lambda f: ["evaluate", "--known-item", "title", "--corpus", HOUSE, "--model", "m", "--output", f / "out"],
        1,
        "has no titles; expected titles to ask with; pass --known-item span",
    ),
    "known items of texts too short for a span": (
        lambda f: ["evaluate", "--known-item", "span", "--corpus", HOUSE, "--model", "m", "--output", f / "out"],
        1,
        "has no document to ask for; expected texts of 30 words",
    ),
    "unknown TOML key": (
        lambda f: settings(f, "[evaluate]\nmetrcs = ['map']\n"),
        2,
        "s.toml [evaluate]: unknown key 'metrcs'; did you mean 'metrics'?",
    ),
    "unknown TOML section": (
        lambda f: settings(f, "[evalute]\n"),
        2,
        "unknown section [evalute]; did you mean 'evaluate'?",
    ),
    "TOML value of the wrong type": (
        lambda f: settings(f, "[evaluate]\nmin_relevance = 'two'\n"),
        2,
        "min_relevance: found 'two'; expected a whole number",
    ),
    "broken TOML": (lambda f: settings(f, "[evaluate\n"), 1, "s.toml: is not TOML"),
    "a settings file that lies here and says where to write": (
        lambda f: lying_here(f, '[evaluate]\nreport = "../r.html"\n'),
        2,
        "retrievo.toml [evaluate]: sets 'report', which says what is written or replaced",
    ),
    "settings file that is a folder": (
        lambda f: ["evaluate", "--config", f, "--run", HOUSE / "run.trec", "--qrels", HOUSE],
        1,
        "Is a directory",
    ),
    "settings file that is not there": (
        lambda f: ["evaluate", "--config", f / "no.toml", "--run", HOUSE / "run.trec"],
        1,
        "no.toml: no such file",
    ),
    "negative depth": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--depth", "-1"],
        2,
        "--depth: found -1; expected at least 1",
    ),
    "depth that is no number": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--depth", "1e3"],
        2,
        "--depth: found '1e3'; expected a whole number",
    ),
    "number that is not finite": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--k1", "nan"],
        2,
        "--k1: found nan; expected a finite number",
    ),
    "question without quotes": (
        lambda f: ["search", "boundary", "layer", "--index", HOUSE / "bm25"],
        2,
        "unexpected extra argument(s) (layer); put a question in quotes, and repeat a flag",
    ),
    "run without its flag": (
        lambda f: ["evaluate", HOUSE / "run.trec", "--qrels", HOUSE],
        2,
        "repeat a flag for each of its values",
    ),
    "unknown flag": (
        lambda f: ["search", "x", "--indx", HOUSE / "bm25"],
        2,
        "unknown option --indx; did you mean --index?",
    ),
    "unknown command": (lambda f: ["serch"], 2, "unknown command 'serch'; did you mean 'search'?"),
    "flag that does not apply": (
        lambda f: ["index", "--type", "flat", "--language", "de", "--embeddings", f, "--output", f / "out"],
        2,
        "--language: applies only",
    ),
    "unknown index type": (
        lambda f: ["index", "--type", "falt", "--embeddings", f, "--output", f / "out"],
        2,
        "--type: found 'falt'; did you mean 'flat'?",
    ),
    "unknown language": (
        lambda f: ["index", "--type", "bm25", "--corpus", HOUSE, "--language", "xx", "--output", f / "out"],
        2,
        "--language: found 'xx'",
    ),
    "malformed heap": (
        lambda f: ["index", "--type", "bm25", "--corpus", HOUSE, "--heap", "lots", "--output", f / "out"],
        2,
        "--heap: found 'lots'",
    ),
    "title template without text": (
        lambda f: ["index", "--type", "bm25", "--corpus", HOUSE, "--title-template", "{title}", "--output", f / "out"],
        2,
        "--title-template: found '{title}'",
    ),
    "nothing to search for": (lambda f: ["search", "--index", HOUSE / "bm25"], 2, "nothing to search for"),
    "fusion of one index": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--fuse", "rrf"],
        2,
        "--fuse: applies only with several indexes or runs",
    ),
    "weights for other indexes": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--index", HOUSE / "bm25", "--fuse-weights", "1,2,3"],
        2,
        "--fuse-weights: found 3 weights for 2 indexes and runs; expected one for each --index and --run",
    ),
    "pre-training of a model that is not there": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--model", f / "nothing"],
        1,
        "give --model PATH of a model folder, or begin from nothing: retrievo pretrain --model scratch:small",
    ),
    "model that is a file": (
        lambda f: ["encode", "--model", text(f / "c.jsonl", "{}"), "--corpus", HOUSE, "--output", f / "out"],
        1,
        "c.jsonl: is a file; give --model PATH of a model folder",
    ),
    "adapter whose model is not there": (
        lambda f: [
            *(
                "encode",
                "--model",
                text(f / "a" / "adapter_config.json", '{"base_model_name_or_path": "/no/m"}').parent,
            ),
            *("--corpus", HOUSE, "--output", f / "out"),
        ],
        1,
        "adapter_config.json: an adapter of the model '/no/m': no folder of this name; expected its weights; "
        "write the folder of that model into base_model_name_or_path there",
    ),
    "model whose training was cut short": (
        lambda f: [
            *("encode", "--model", text(f / "t1" / "begin.json", "{}").parent),
            *("--corpus", HOUSE, "--output", f / "out"),
        ],
        1,
        "t1: is unfinished; run the command that makes it again",
    ),
    "stage without settings whose training was cut short": (
        lambda f: ["train", text(f / "t1" / "begin.json", "{}").parent],
        1,
        "t1: is unfinished; type the command that began it again",
    ),
    "stages without their to": (
        lambda f: ["mine-negatives", "stage-1", "stage-2"],
        2,
        "mine-negatives: found 'stage-1 stage-2'; expected two stages, as in: stage-1 to stage-2",
    ),
    "stage that follows itself": (
        lambda f: ["mine-negatives", "stage-1", "to", "./stage-1"],
        2,
        "found 'stage-1 to ./stage-1'; expected another folder for the next stage",
    ),
    "unknown size of a model from nothing": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--model", "scratch:smal"],
        2,
        "--model: found 'scratch:smal'; did you mean 'scratch:small'?",
    ),
    "option of another objective": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--objective", "mlm", "--early-layer", 1],
        2,
        "--early-layer: applies only with --objective condenser or cocondenser",
    ),
    "documents too short for spans": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--model", "scratch:tiny"],
        1,
        "expected room for 2 spans of 8 tokens in most",
    ),
    "continuing nothing": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--model", "scratch:tiny", "--continue", "--max-steps", 9],
        1,
        "pretrained: no such file or folder",
    ),
    "continuing without an end": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--continue"],
        2,
        "--continue: needs to know how long; pass --max-steps N, counted from the start",
    ),
    "mix of corpora that is none": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--mix", "even"],
        2,
        "--mix: found 'even'; expected uniform, equal, alpha=0.5, or a weight for each as in 3,1",
    ),
    "weights for other corpora": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--mix", "3,1"],
        2,
        "--mix: found 2 weights for 1 corpora or data sets; expected one weight for each",
    ),
    "weight of a term that is none": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--weight", "crops=1"],
        2,
        "--weight: found 'crops=1'; expected mlm=NUMBER or contrastive=NUMBER",
    ),
    "validation without documents": (
        lambda f: ["pretrain", "--corpus", HOUSE, "--validate-every", 10],
        2,
        "--validate-every: applies only with --held-out above 0",
    ),
    "soft labels without a teacher": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--loss", "kl"],
        2,
        "--loss kl: needs a teacher; pass --teacher RUN",
    ),
    "teacher of a loss without one": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--teacher", f / "run.parquet"],
        2,
        "--teacher: applies only with --loss margin-mse or kl",
    ),
    "cut weights in one process": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--fsdp"],
        2,
        "--fsdp: found one process; expected several processes, each of which keeps a part of the model; start it with",
    ),
    "cut weights with chunks of automatic size": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--fsdp", "--chunk-tokens", "auto"],
        2,
        "--chunk-tokens: auto can't be determined with --fsdp; pass --chunk-tokens N",
    ),
    "verified gradients of cut weights": (
        lambda f: ["train", *TABLES, "--model", f, "--fsdp", "--verify-gradients"],
        2,
        "--verify-gradients: looks at whole models; leave --fsdp out",
    ),
    "scale of adapters without any": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--lora-alpha", 16],
        2,
        "--lora-alpha: applies only with --lora-rank",
    ),
    "adapters for a cross-encoder": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--kind", "cross-encoder", "--lora-rank", 8],
        2,
        "--lora-rank: applies only with --kind dense",
    ),
    "batch teacher of a loss that needs one": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--loss", "batch-margin-mse"),
            *("--batch-teacher", HOUSE / "documents"),
        ],
        2,
        "--loss batch-margin-mse: needs a teacher's vectors of the corpus and of the queries, found 1 folders",
    ),
    "loss of groups without negatives": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--loss", "listwise"],
        2,
        "--loss listwise: learns from each query's own negatives, of which there are none; pass --negatives POOL",
    ),
    "margins without negatives": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--teacher", f / "run.parquet"),
            *("--loss", "margin-mse"),
        ],
        2,
        "--loss margin-mse: learns from each query's own negatives, of which there are none; pass --negatives POOL",
    ),
    "balanced margins without a pool": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--teacher", f / "run.parquet"),
            *("--loss", "margin-mse", "--balanced-margins", 10),
        ],
        2,
        "--balanced-margins: draws from a pool; pass --negatives POOL",
    ),
    "balanced margins without a teacher": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--balanced-margins", 10],
        2,
        "--balanced-margins: applies only with --loss margin-mse or kl",
    ),
    "number of query clusters without vectors": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--query-cluster-count", 10],
        2,
        "--query-cluster-count: applies only with --query-clusters",
    ),
    "query clusters by vectors of documents": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--query-clusters", HOUSE / "documents"],
        1,
        "documents: holds document vectors; expected query vectors",
    ),
    "query clusters for a cross-encoder": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--kind", "cross-encoder"),
            *("--query-clusters", HOUSE / "questions"),
        ],
        2,
        "--query-clusters: applies only with --kind dense",
    ),
    "share of hard negatives without a pool": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--hard-negative-ratio", 0.1],
        2,
        "--hard-negative-ratio: is a share of no pool; pass --negatives POOL",
    ),
    "refresh of negatives that are never drawn": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--refresh-every", 100),
            *("--negatives-per-query", 0),
        ],
        2,
        "--refresh-every: mines negatives that are never drawn; pass --negatives-per-query 1 or more",
    ),
    "depth of a refresh that never comes": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--refresh-depth", 100],
        2,
        "--refresh-depth: applies only with --refresh-every",
    ),
    "fixed documents and a pool of negatives": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--document-embeddings", HOUSE / "documents"),
            *("--negatives", HOUSE / "run.trec"),
        ],
        2,
        "--negatives: applies only without --document-embeddings",
    ),
    "fixed documents of another corpus": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--document-embeddings", HOUSE / "documents"],
        1,
        "does not hold the documents of this corpus; expected ",
    ),
    "negatives found among no fixed documents": (
        lambda f: ["train", *TABLES, "--model", f, "--output", f / "out", "--dynamic-negatives", 50],
        2,
        "--dynamic-negatives: applies only with --document-embeddings",
    ),
    "temperature of a loss without one": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--teacher", f / "run.parquet"),
            *("--loss", "margin-mse", "--temperature", 0.1),
        ],
        2,
        "--temperature: applies only with --loss",
    ),
    "cross-encoder without negatives": (
        lambda f: [
            *("train", *TABLES, "--model", f, "--output", f / "out", "--kind", "cross-encoder"),
            *("--negatives-per-query", 0),
        ],
        2,
        "--negatives-per-query: is 0: a cross-encoder learns from a group",
    ),
    "miner without an index": (
        lambda f: ["mine-negatives", *TABLES, "--source", "index", "--output", f / "n.parquet"],
        2,
        "--source index: needs an index; pass --index FOLDER",
    ),
    "unknown miner": (
        lambda f: ["mine-negatives", *TABLES, "--source", "bm52:3", "--output", f / "n.parquet"],
        2,
        "--source: found 'bm52:3'; did you mean 'bm25'?",
    ),
    "depth beyond what is reranked": (
        lambda f: ["search", "x", "--index", HOUSE / "bm25", "--rerank", f, "--depth", 200],
        2,
        "--depth: found 200; expected at most --rerank-depth (100)",
    ),
    "bounds of labels that cross": (
        lambda f: ["pseudo-label", "--run", HOUSE / "run.trec", "--output", f / "out", "--negative-below", 0.95],
        2,
        "--negative-below: found 0.95; expected at most --positive-above (0.9)",
    ),
    "labels from probabilities that are none": (
        lambda f: ["pseudo-label", "--run", HOUSE / "run.trec", "--output", f / "out", "--scores", "probabilities"],
        1,
        "its scores lie between 2.5 and 2.5; expected 0 to 1; pass --scores logits",
    ),
    "labels of which nobody is sure": (
        lambda f: [
            *("pseudo-label", "--run", text(f / "r.trec", "q1 Q0 d1 1 1.5 x\nq2 Q0 d1 1 -3 x\nq3 Q0 d1 1 9 x\n")),
            *("--qrels", text(f / "q.txt", "q3 0 d2 1\n"), "--output", f / "out"),
        ],
        1,
        "no query gets a label: 1 are judged, 2 have no document above 0.9; lower --positive-above",
    ),
    "labels of a document twice for a query": (
        lambda f: [
            *("pseudo-label", "--run", text(f / "r.trec", "q1 Q0 d1 1 5 x\nq1 Q0 d1 2 4 x\n"), "--output", f / "out"),
        ],
        1,
        "r.trec: query 'q1' and document 'd1' occur twice; expected each pair once; remove one of the rows",
    ),
    "recipe with an unknown command": (
        lambda f: ["run", text(f / "r.toml", '[steps.a]\ncommand = "serch"\n')],
        2,
        "r.toml [steps.a]: found the command 'serch'; did you mean 'search'?",
    ),
    "recipe that names a later step": (
        lambda f: ["run", text(f / "r.toml", '[steps.a]\ncommand = "encode"\nmodel = "{b}"\ncorpus = "c"\n')],
        2,
        "r.toml [steps.a]: found '{b}'; expected an earlier step or a variable",
    ),
    "recipe without steps": (lambda f: ["run", text(f / "r.toml", "")], 2, "r.toml: has no steps"),
    "setting of no variable": (
        lambda f: ["run", text(f / "r.toml", "[variables]\nseed = 0\n"), "--set", "sed=1"],
        2,
        "--set: found 'sed'; expected a variable of",
    ),
    "queries without a place for the run": (
        lambda f: ["search", "--index", HOUSE / "bm25", "--queries", HOUSE],
        2,
        "--queries: no place for the run; pass --output",
    ),
    "run name without a known suffix": (
        lambda f: ["search", "--index", HOUSE / "bm25", "--queries", HOUSE, "--output", f / "out.csv"],
        2,
        "out.csv'; expected a file that ends in .parquet",
    ),
    "empty question": (lambda f: ["search", " ", "--index", HOUSE / "bm25"], 2, "QUESTION: is empty"),
    "second index without its flag": (
        lambda f: ["search", "--index", HOUSE / "bm25", HOUSE / "bm25"],
        2,
        "is a folder that retrievo made; expected words to search for; repeat the flag: --index ",
    ),
    # artifacts
    "index that is not there": (
        lambda f: ["search", "x", "--index", f / "no"],
        1,
        "no: no such file or folder; check the path",
    ),
    "dataset where an index is searched": (
        lambda f: ["search", "x", "--index", HOUSE],
        1,
        "is a dataset; expected an index or an embeddings folder; name those inside it: --index ",
    ),
    "corpus where an index is searched": (
        lambda f: ["search", "x", "--index", HOUSE / "corpus.parquet"],
        1,
        "corpus.parquet: carries no record of how it was made; expected bm25-index or faiss-index or embeddings",
    ),
    "text where an index is searched": (
        lambda f: ["search", "x", "--index", text(f / "c.jsonl", "{}")],
        1,
        "c.jsonl: carries no record of how it was made; expected bm25-index or faiss-index or embeddings",
    ),
    "output that is a foreign file": (
        lambda f: [
            *("search", "--index", HOUSE / "bm25", "--queries", HOUSE, "--output", text(f / "thesis.txt", "x")),
        ],
        1,
        "thesis.txt: exists already and carries no record of how it was made; pass --force to replace it",
    ),
    "folder that is no artifact": (
        lambda f: ["search", "x", "--index", f],
        1,
        "is not an artifact of retrievo (it has no manifest.json)",
    ),
    "unfinished index": (
        lambda f: ["search", "x", "--index", text(f / "begin.json", "{}").parent],
        1,
        "is unfinished; run the command that makes it again",
    ),
    "artifact of another kind": (
        lambda f: ["index", "--embeddings", HOUSE / "bm25", "--output", f / "out"],
        1,
        "is of kind 'bm25-index'; expected embeddings",
    ),
    "output that is also an input": (
        lambda f: [
            *("search", "--index", HOUSE / "bm25", "--queries", table(f / "q.parquet", id=["a"], text=["heat"])),
            *("--output", f / "q.parquet", "--force"),
        ],
        1,
        "q.parquet: is also an input (queries); choose another --output",
    ),
    "output that is not ours": (
        lambda f: ["index", "--type", "bm25", "--corpus", HOUSE, "--output", text(f / "thesis.txt", "x").parent],
        1,
        "holds files that retrievo did not make ('thesis.txt')",
    ),
    # vectors
    "NaN vectors": (lambda f: vectors(f, NAN), 1, "row 1 (id 'a'): the vector holds nan; expected finite numbers"),
    "more ids than vectors": (lambda f: vectors(f, np.ones((1, 2), np.float32)), 1, "ids.txt: has 2 lines; expected 1"),
    "duplicate vector ids": (
        lambda f: vectors(f, np.ones((2, 2), np.float32), "a\na\n"),
        1,
        "id 'a' occurs twice (lines 1 and 2)",
    ),
    "vectors of whole numbers": (
        lambda f: vectors(f, np.ones((2, 2), np.int64)),
        1,
        "x.npy: holds int64; expected float16, float32 or float64",
    ),
    "array of one dimension": (
        lambda f: vectors(f, np.ones(2, np.float32)),
        1,
        "x.npy: has shape (2,); expected [rows, dimensions]",
    ),
    "array of Python objects": (lambda f: vectors(f, np.array([["a"], [None]], object)), 1, "x.npy: can't be read"),
    "queries of another dimension": (
        lambda f: ["search", "--index", HOUSE / "documents", "--queries", HOUSE / "narrow", "--output", f / "out.trec"],
        1,
        "have shape (2, 2); expected [queries, 4]",
    ),
    "documents where queries belong": (
        lambda f: [
            "search",
            "--index",
            HOUSE / "documents",
            "--queries",
            HOUSE / "documents",
            "--output",
            f / "out.trec",
        ],
        1,
        "holds document vectors; expected query vectors",
    ),
    "texts over imported vectors": (
        lambda f: ["search", "--index", HOUSE / "documents", "--queries", HOUSE, "--output", f / "out.trec"],
        1,
        "its manifest records no model",
    ),
    "BM25 option for a dense index": (
        lambda f: ["search", "x", "--index", HOUSE / "documents", "--k1", "1"],
        2,
        "--k1: does not apply to",
    ),
    # indexes and search
    "factory string that FAISS can't read": (
        lambda f: ["index", "--embeddings", HOUSE / "documents", "--type", "IVFx,Wrong", "--output", f / "out"],
        2,
        "FAISS makes no index of 'IVFx,Wrong' for 4 dimensions",
    ),
    "addition of documents that are there": (
        lambda f: ["index", "--embeddings", HOUSE / "again", "--add", "--output", HOUSE / "ivf"],
        1,
        "has already; expected new documents only",
    ),
    "BM25 options of 0 for a dense index": (
        lambda f: dense(f, "--k1", 0, "--b", 0),
        2,
        "--k1: does not apply to",
    ),
    "candidates of no approximate index": (
        lambda f: lexical(f, "--rescore", 0),
        2,
        "bm25, which is of kind 'bm25-index'",
    ),
    "JSON of a run": (
        lambda f: dense(f, "--json"),
        2,
        "--json: applies only without --queries",
    ),
    "run of a typed question": (
        lambda f: ["search", "wing", "--index", HOUSE / "bm25", "--output", f / "out.trec"],
        2,
        "--output: applies only with --queries",
    ),
    "depth of a reranking that nobody asked for": (
        lambda f: dense(f, "--rerank-depth", 5),
        2,
        "--rerank-depth: applies only with --rerank",
    ),
    "metric of a tuning that nobody asked for": (
        lambda f: dense(f, "--tune-metric", "mrr@10"),
        2,
        "--tune-metric: applies only with --tune-on",
    ),
    "output below a file": (
        lambda f: dense(f, "--output", text(f / "notes", "mine") / "out.trec"),
        1,
        "notes: is a file; expected a folder; choose another --output",
    ),
    "option of another index type": (
        lambda f: dense(f, "--ef-search", 8, index="ivf"),
        2,
        "ivf, which is of kind 'faiss-index' and type 'ivf'",
    ),
    "more lists than there are": (
        lambda f: dense(f, "--nprobe", 99, index="ivf"),
        2,
        "--nprobe: found 99; expected at most",
    ),
    "fewer candidates than documents": (
        lambda f: dense(f, "--rescore", 2, "--depth", 3, index="ivf"),
        2,
        "--rescore: found 2; expected 0, or at least 3, the documents wanted",
    ),
    "recall target for exact search": (
        lambda f: dense(f, "--recall-target", 0.9),
        2,
        "--recall-target: does not apply to",
    ),
    "recall target and what it tunes": (
        lambda f: dense(f, "--recall-target", 0.9, "--nprobe", 1, index="ivf"),
        2,
        "--recall-target: is given together with --nprobe, which it tunes",
    ),
    "memory that is no size": (lambda f: dense(f, "--memory", "much"), 2, "--memory: found 'much'"),
    "feedback for words": (
        lambda f: [
            "search",
            "--index",
            HOUSE / "bm25",
            "--queries",
            HOUSE,
            "--output",
            f / "o.trec",
            "--feedback",
            "average",
        ],
        2,
        "--feedback: does not apply to",
    ),
    "feedback for a typed question": (
        lambda f: ["search", "x", "--index", HOUSE / "documents", "--feedback", "average"],
        2,
        "--feedback: applies only with --queries",
    ),
    "weight of a feedback that has none": (
        lambda f: dense(f, "--feedback", "average", "--feedback-weight", 0.3),
        2,
        "--feedback-weight: applies only with --feedback rocchio",
    ),
    "RM3 without the words of documents": (
        lambda f: ["search", "--index", HOUSE / "bm25", "--queries", HOUSE, "--output", f / "out.trec", "--rm3"],
        1,
        "keeps no term vectors; expected those of its documents, for RM3; build the index with --term-vectors",
    ),
    "conversation and a question": (
        lambda f: ["search", "x", "--interactive", "--index", HOUSE / "bm25"],
        2,
        "--interactive: is given together with QUESTION",
    ),
    "export of an index": (
        lambda f: ["export", HOUSE / "bm25", "--output", f / "out"],
        1,
        "is of kind 'bm25-index'; expected embeddings",
    ),
    # imports
    "import of broken JSON": (
        lambda f: [
            "import",
            "jsonl",
            text(f / "c.jsonl", '{"id": "a", "text": "x"}\n{"id": \n'),
            "--output",
            f / "out",
        ],
        1,
        "c.jsonl, line 2",
    ),
    "import of a repeated id": (
        lambda f: ["import", "jsonl", text(f / "c.jsonl", '{"id": "a", "text": "x"}\n' * 2), "--output", f / "out"],
        1,
        "id 'a'",
    ),
    "import of a missing file": (
        lambda f: ["import", "beir", f / "no.zip", "--output", f / "out"],
        1,
        "no.zip: no such file or folder",
    ),
    "unknown format": (
        lambda f: ["import", "bier", f, "--output", f / "out"],
        2,
        "FORMAT: found 'bier'; did you mean 'beir'?",
    ),
}


@pytest.fixture(scope="module")
def finished_house(house: Path, module_retrievo: Callable) -> Path:
    """With a BM25 index, embeddings, an index of them, and other vectors of a document that it holds."""
    made = module_retrievo("index", "--type", "bm25", "--corpus", house, "--output", house / "bm25")
    assert made.code == 0, made.err
    for name, role in (("documents", "document"), ("questions", "query"), ("narrow", "query")):
        arrays = (house / f"{name}.npy", house / f"{name}.txt")
        made = module_retrievo("import", "vectors", *arrays, "--output", house / name, "--role", role)
        assert made.code == 0, made.err
    ids = text(house / "again.txt", "d9\nd0\n")
    assert module_retrievo("import", "vectors", house / "questions.npy", ids, "--output", house / "again").code == 0
    made = module_retrievo("index", "--embeddings", house / "documents", "--type", "ivf", "--output", house / "ivf")
    assert made.code == 0, made.err
    return house


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_gives_one_line_and_leaves_nothing(
    name: str, finished_house: Path, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, code, message = CASES[name]
    arguments = [str(argument).replace("HOUSE", str(finished_house), 1) for argument in make(tmp_path)]
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    outcome = retrievo(*arguments)
    error = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert message in outcome.err
    assert (outcome.code, len(error), outcome.out) == (code, 1, "")
    assert "Traceback" not in outcome.err
    left = sorted(path for path in tmp_path.rglob("*"))
    assert left == before, "nothing half-written stands at the output"


def test_there_are_at_least_forty() -> None:
    assert len(CASES) >= 40


def test_odd_but_usable_data_is_counted_in_a_warning(tmp_path: Path, retrievo: Callable) -> None:
    corpus = text(tmp_path / "corpus.jsonl", '{"_id": "a", "text": ""}\n{"_id": "b", "text": "x"}\n')
    (tmp_path / "qrels").mkdir()
    text(tmp_path / "queries.jsonl", '{"_id": "q", "text": "x"}\n')
    text(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\tb\t1\nq\tnowhere\t1\nghost\tb\t1\n")
    outcome = retrievo("import", "beir", corpus.parent, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    warnings = " ".join(line for line in outcome.err.splitlines() if line.startswith("warning: "))
    assert "documents without text: 1; kept" in warnings
    assert "judgments (test) of a query that is not there: 1; kept" in warnings
    assert "judgments (test) of a document that is not in the corpus: 1; kept" in warnings
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stats"]
