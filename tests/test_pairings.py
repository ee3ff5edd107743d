"""Forty things that do not belong together: each ends in an error or a warning that names what does not fit.

Two collections have the same ids, so that nothing but what manifests record tells them apart.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.models.encoder import Encoder

PLAIN = ("--pooling", "mean", "--dtype", "float32", "--chunk-tokens", 512, "--threads", 1)
Command = list[object]


@dataclass(frozen=True)
class House:
    """Collections `one` and `two` with equal ids, models `one` and `two`, and what was made of them."""

    home: Path

    def __truediv__(self, name: str) -> Path:
        return self.home / name

    def search(self, *flags: object, out: Path, queries: object = None) -> Command:
        return ["search", "--queries", queries or self / "one", "--output", out / "out.parquet", *flags, *PLAIN[2:]]

    def evaluate(self, *runs: str, qrels: str = "one", metric: str = "mrr@10") -> Command:
        return ["evaluate", "--run", *(self / run for run in runs), "--qrels", self / qrels, "--metrics", metric]

    def rerank(self, run: str, out: Path, corpus: str = "one", queries: str = "one") -> Command:
        tables = ["--corpus", self / corpus, "--queries", self / queries]
        return ["rerank", "--run", self / run, "--model", self / "bare", *tables, "--output", out / "o.parquet"]

    def mine(self, *flags: object, out: Path, qrels: str = "one") -> Command:
        tables = ["--corpus", self / "one", "--queries", self / "one", "--qrels", self / qrels]
        return ["mine-negatives", *tables, "--output", out / "out.parquet", *flags]

    def train(
        self, *flags: object, out: Path, model: str = "model-one", qrels: str = "one/qrels/test.parquet"
    ) -> Command:
        tables = ["--corpus", self / "one", "--queries", self / "one", "--qrels", self / qrels]
        short = ["--max-steps", 1, "--batch-size", 2, "--threads", 1]
        return ["train", "--model", self / model, *tables, "--output", out / "stage", *short, *flags]

    def encode(self, *flags: object, out: Path, model: str = "model-one") -> Command:
        return ["encode", "--model", self / model, "--output", out, *flags, *PLAIN]


def collection(folder: Path, words: tuple[str, ...]) -> None:
    """Twelve documents and queries with the ids of every other collection."""
    ids = [f"{number}" for number in range(12)]
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{words[number % len(words)]} {words[number // len(words)]} data" for number in range(12)]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus.parquet")
    answers = [[word] for word in texts]
    pq.write_table(pa.table({"id": ids, "text": texts, "answers": answers}), folder / "queries.parquet")
    for split in ("test", "train"):
        grades = pa.array([1] * 12, pa.int32())
        columns = {"query_id": ids, "doc_id": ids if split == "test" else ids[1:] + ids[:1], "relevance": grades}
        pq.write_table(pa.table(columns), folder / "qrels" / f"{split}.parquet")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, module_retrievo: Callable) -> House:
    home = House(tmp_path_factory.mktemp("pairings"))

    def run(*arguments: object) -> None:
        done = module_retrievo(*arguments)
        assert done.code == 0, done.err

    def made(name: str, *flags: object, queries: Path | None = None) -> None:
        run(*home.search(*flags, out=home.home, queries=queries))
        shutil.move(home / "out.parquet", home / f"run-{name}.parquet")

    collection(home / "one", ("wing1", "flow2", "heat3", "blade4"))
    collection(home / "two", ("shock5", "layer6", "engine7", "wave0"))
    shutil.copytree(tiny_model, home / "model-one")
    shutil.copytree(tiny_model, home / "model-two")
    told = json.loads((home / "model-two" / "config.json").read_text())
    (home / "model-two" / "config.json").write_text(json.dumps(told | {"layer_norm_eps": 1e-3}))
    for name in ("one", "two"):
        for role in ("corpus", "queries"):
            run(*home.encode(f"--{role}", home / name, out=home / f"{role}-{name}"))
        made(name, "--index", home / f"corpus-{name}", queries=home / name)
        run("index", "--embeddings", home / f"corpus-{name}", "--output", home / f"index-{name}")
    for role in ("corpus", "queries"):
        run(*home.encode(f"--{role}", home / "one", out=home / f"{role}-by-two", model="model-two"))
    made("short", "--index", home / "corpus-one", "--depth", 2)
    made("cross", "--index", home / "corpus-one", queries=home / "two")
    for name in ("one", "two"):
        tables = ("--corpus", home / name, "--queries", home / name, "--qrels", home / name)
        mined = (
            "--source",
            "run",
            "--run",
            home / f"run-{name}.parquet",
            "--output",
            home / f"negatives-{name}.parquet",
        )
        run("mine-negatives", *tables, *mined)
    for name, prompt in (("bare", ""), ("prompted", "flow ")):
        Encoder.load(tiny_model, pooling="mean", query_prefix=prompt).save(home / name)
    run(*home.encode("--corpus", home / "one", out=home / "corpus-bare", model="bare"))
    run(*home.encode("--queries", home / "one", out=home / "queries-prompted", model="prompted"))
    run(*home.encode("--queries", home / "one", "--pooling", "cls", out=home / "queries-cls")[:-8], *PLAIN[2:])
    run(*home.encode("--queries", home / "one", "--truncate-dim", 16, out=home / "queries-cut"))
    run(*home.encode("--corpus", home / "one", "--storage-dtype", "float32", out=home / "corpus-wide"))
    for name, role, similarity, dim in (
        ("d", "document", "dot", 32),
        ("q", "query", "cosine", 32),
        ("n", "query", "dot", 8),
    ):
        np.save(home / f"{name}.npy", np.ones((12, dim), np.float32))
        (home / f"{name}.txt").write_text("".join(f"{number}\n" for number in range(12)))
        flags = ("--role", role, "--similarity", similarity, "--output", home / f"imported-{name}")
        run("import", "vectors", home / f"{name}.npy", home / f"{name}.txt", *flags)
    (home / "foreign.trec").write_text("0 Q0 0 1 2.5 x\n")
    (home / "strange.trec").write_text("zz Q0 0 1 2.5 x\n")
    return home


def changed(home: House, out: Path, source: str) -> Path:
    """A copy of something, to be spoilt."""
    shutil.copytree(home / source, out / source)
    return out / source


def begun(folder: Path) -> Path:
    """A finished output as if it had been stopped."""
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "begin.json").write_text(
        json.dumps({k: told[k] for k in ("kind", "format", "options", "config", "inputs")})
    )
    return folder


def replaced_model(h: House, f: Path) -> Command:
    """A search by a model whose folder holds another one since it encoded the documents."""
    found = h.search("--index", spoilt_vectors(h, f), out=f)
    shutil.copyfile(h / "model-two" / "config.json", f / "model-one" / "config.json")
    return found


def spoilt_vectors(h: House, f: Path) -> Path:
    """Embeddings by a copy of the first model, whose manifest says so."""
    changed(h, f, "model-one")
    folder = changed(h, f, "corpus-one")
    told = json.loads((folder / "manifest.json").read_text())
    told["inputs"]["model"]["path"] = "model-one"
    (folder / "manifest.json").write_text(json.dumps(told))
    return folder


def replaced_vectors(h: House, f: Path) -> Command:
    """A search in an index beside which the embeddings of another model lie by now."""
    index = changed(h, f, "index-one")
    shutil.copytree(h / "corpus-by-two", f / "corpus-one")
    return h.search("--index", index, out=f)


def deeper(h: House, f: Path) -> Command:
    """The search of a run that is there, to another depth."""
    shutil.copyfile(h / "run-short.parquet", f / "out.parquet")
    return h.search("--index", h / "corpus-one", "--depth", 3, out=f)


def answers_of(f: Path, *query_ids: str) -> Path:
    pq.write_table(pa.table({"query_id": query_ids, "answers": [["wing1"]] * len(query_ids)}), f / "answers.parquet")
    return f / "answers.parquet"


def nearest(h: House, f: Path, *flags: object) -> Command:
    """A question that a person types."""
    return ["search", "wing1", "--index", h / "corpus-one", "--dtype", "float32", "--chunk-tokens", 512, *flags]


def taught(h: House, f: Path, *flags: object) -> Command:
    return h.train("--negatives", h / "negatives-one.parquet", *flags, out=f)


ANOTHER, OTHERS = "made from another corpus", "other queries"
Case = tuple[Callable[[House, Path], Command], int, tuple[str, ...]]

# what does not belong together -> (the command, its exit code, words of the line that says so)
PAIRINGS: dict[str, Case] = {
    # search
    "indexes of two corpora": (
        lambda h, f: h.search("--index", h / "corpus-one", "--index", h / "index-two", out=f),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "an index and a run of another corpus": (
        lambda h, f: h.search("--index", h / "corpus-one", "--run", h / "run-two.parquet", out=f),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "runs of two corpora": (
        lambda h, f: h.search("--run", h / "run-one.parquet", "--run", h / "run-two.parquet", out=f),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "feedback from another corpus": (
        lambda h, f: h.search(
            *("--index", h / "corpus-one", "--index", h / "corpus-two"),
            *("--feedback", "rocchio", "--feedback-from", "fused"),
            out=f,
        ),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "a question to two corpora": (
        lambda h, f: nearest(h, f, "--index", h / "corpus-two"),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "queries of another model": (
        lambda h, f: h.search("--index", h / "corpus-one", out=f, queries=h / "queries-by-two"),
        1,
        ("encoded by another model", "/model-one", "/model-two"),
    ),
    "queries of another model than the index of FAISS": (
        lambda h, f: h.search("--index", h / "index-one", out=f, queries=h / "queries-by-two"),
        1,
        ("encoded by another model", "/model-one", "/model-two"),
    ),
    "queries with another prompt": (
        lambda h, f: h.search("--index", h / "corpus-bare", out=f, queries=h / "queries-prompted"),
        1,
        ("encoded by another model", "/prompted", "/bare"),
    ),
    "queries pooled in another way": (
        lambda h, f: h.search("--index", h / "corpus-one", out=f, queries=h / "queries-cls"),
        1,
        ("encoded by another model", "pooling cls", "pooling mean"),
    ),
    "queries cut to fewer dimensions": (
        lambda h, f: h.search("--index", h / "corpus-one", out=f, queries=h / "queries-cut"),
        1,
        ("encoded by another model", "truncate_dim 16"),
    ),
    "imported vectors of fewer dimensions": (
        lambda h, f: h.search("--index", h / "imported-d", out=f, queries=h / "imported-n"),
        1,
        ("8", "32"),
    ),
    "imported queries to encoded documents": (
        lambda h, f: h.search("--index", h / "corpus-one", out=f, queries=h / "imported-q"),
        1,
        ("encoded by another model", "the vectors were imported"),
    ),
    "imported vectors of another similarity": (
        lambda h, f: h.search("--index", h / "imported-d", out=f, queries=h / "imported-q"),
        0,
        ("similarity cosine", "for dot"),
    ),
    "imported vectors of who knows which models": (
        lambda h, f: h.search("--index", h / "imported-d", out=f, queries=h / "imported-q"),
        0,
        ("that one model made both can't be checked",),
    ),
    "vectors of queries as documents": (
        lambda h, f: h.search("--index", h / "queries-one", out=f),
        1,
        ("holds query vectors; expected document vectors",),
    ),
    "vectors of documents as queries": (
        lambda h, f: h.search("--index", h / "corpus-one", out=f, queries=h / "corpus-one"),
        1,
        ("holds document vectors; expected query vectors",),
    ),
    "an index and a run of who knows which corpus": (
        lambda h, f: h.search("--index", h / "corpus-one", "--run", h / "foreign.trec", out=f),
        0,
        ("foreign.trec does not say of which corpus it is",),
    ),
    "a run of queries that are not asked": (
        lambda h, f: h.search("--index", h / "corpus-one", "--run", h / "strange.trec", out=f),
        1,
        ("query 'zz' that is not in the table of queries",),
    ),
    "a run of other queries with the same ids": (
        lambda h, f: h.search("--index", h / "corpus-one", "--run", h / "run-cross.parquet", out=f),
        0,
        (OTHERS, "run-cross.parquet", "/one", "/two"),
    ),
    "an index beside other embeddings": (replaced_vectors, 1, ("made of other embeddings", "build the index again")),
    "an index of a model that has changed": (replaced_model, 1, ("has changed since it encoded these vectors",)),
    "texts of another corpus": (
        lambda h, f: nearest(h, f, "--corpus", h / "two"),
        0,
        ("is another corpus than", "/one", "/two"),
    ),
    "a cross-encoder that reads another corpus": (
        lambda h, f: nearest(h, f, "--corpus", h / "two", "--rerank", h / "model-one"),
        1,
        ("is another corpus than", "/one", "/two"),
    ),
    "weights tuned on another collection": (
        lambda h, f: h.search(
            *("--run", h / "run-one.parquet", "--run", h / "run-short.parquet", "--tune-on", h / "two"), out=f
        ),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "queries that another collection judges": (
        lambda h, f: h.search("--index", h / "corpus-one", "--judged", h / "two", out=f),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "a finished run of another depth": (
        deeper,
        1,
        ("depth was 2 and is now 3",),
    ),
    # index
    "more vectors of another model": (
        lambda h, f: ["index", "--add", "--embeddings", h / "corpus-by-two", "--output", h / "index-one"],
        1,
        ("encoded by another model", "/model-one", "/model-two"),
    ),
    "more vectors of another number format": (
        lambda h, f: ["index", "--add", "--embeddings", h / "corpus-wide", "--output", h / "index-one"],
        1,
        ("holds float32; expected float16",),
    ),
    "more vectors of another corpus with the same ids": (
        lambda h, f: ["index", "--add", "--embeddings", h / "corpus-two", "--output", h / "index-one"],
        1,
        ("documents of another corpus are added", "/one", "/two", "which", "has already"),
    ),
    # rerank
    "a run of another corpus to rerank": (lambda h, f: h.rerank("run-two.parquet", f), 1, (ANOTHER, "/one", "/two")),
    "a run to rerank over another corpus": (
        lambda h, f: h.rerank("run-one.parquet", f, corpus="two"),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    "a run of other queries to rerank": (
        lambda h, f: h.rerank("run-cross.parquet", f),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "negatives of another corpus to score": (
        lambda h, f: h.rerank("negatives-two.parquet", f),
        1,
        (ANOTHER, "/one", "/two"),
    ),
    # evaluate
    "runs of two corpora side by side": (
        lambda h, f: h.evaluate("run-one.parquet", "run-two.parquet"),
        0,
        ("is a run of another corpus", "/one", "/two"),
    ),
    "runs of other queries side by side": (
        lambda h, f: h.evaluate("run-one.parquet", "run-cross.parquet"),
        0,
        ("is a run of other queries", "/one", "/two"),
    ),
    "a reference run of another corpus": (
        lambda h, f: [
            *h.evaluate("run-one.parquet", metric="nb-recall-5@5"),
            *("--reference-run", h / "run-two.parquet"),
        ],
        0,
        ("is a run of another corpus", "/one", "/two"),
    ),
    "judgments of another collection": (
        lambda h, f: h.evaluate("run-one.parquet", qrels="two"),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "judgments of all splits": (
        lambda h, f: h.evaluate("run-one.parquet", qrels="one/qrels"),
        1,
        ("holds several tables of qrels (test.parquet, train.parquet)",),
    ),
    "judgments of no query of the run": (
        lambda h, f: h.evaluate("strange.trec"),
        1,
        ("none of its 1 queries is judged",),
    ),
    "a cutoff below the depth of the run": (
        lambda h, f: h.evaluate("run-short.parquet", metric="recall@100"),
        0,
        ("was made to depth 2, less than recall@100 needs",),
    ),
    "answers in another corpus": (
        lambda h, f: [
            *h.evaluate("run-one.parquet", metric="answer-recall@5"),
            *("--answers", h / "one", "--corpus", h / "two"),
        ],
        1,
        ("is another corpus than", "/one", "/two"),
    ),
    "answers of another collection": (
        lambda h, f: [*h.evaluate("run-one.parquet", metric="answer-recall@5"), "--answers", h / "two"],
        0,
        (OTHERS, "/one", "/two"),
    ),
    "answers of no judged query": (
        lambda h, f: [
            *h.evaluate("run-one.parquet", metric="answer-recall@5"),
            *("--answers", answers_of(f, "zz")),
        ],
        1,
        ("has no answers for the judged queries",),
    ),
    # mine-negatives
    "candidates of a run of another corpus": (
        lambda h, f: h.mine("--source", "run", "--run", h / "run-two.parquet", out=f),
        0,
        (ANOTHER, OTHERS, "/one", "/two"),
    ),
    "candidates of an index of another corpus": (
        lambda h, f: h.mine("--source", "index", "--index", h / "corpus-two", out=f),
        0,
        (ANOTHER, "/one", "/two"),
    ),
    "a teacher of candidates of another corpus": (
        lambda h, f: h.mine(
            *("--source", "random", "--teacher", h / "run-two.parquet", "--max-teacher-score", 9), out=f
        ),
        0,
        (ANOTHER, "/one", "/two"),
    ),
    "negatives for another collection's judgments": (
        lambda h, f: h.mine("--source", "random", out=f, qrels="two/qrels/test.parquet"),
        0,
        (OTHERS, "/one", "/two"),
    ),
    # train
    "negatives of another corpus": (
        lambda h, f: h.train("--negatives", h / "negatives-two.parquet", out=f),
        0,
        (ANOTHER, OTHERS, "/one", "/two"),
    ),
    "a teacher of another corpus": (
        lambda h, f: taught(h, f, "--teacher", h / "run-two.parquet", "--loss", "margin-mse"),
        0,
        (ANOTHER, "/one", "/two"),
    ),
    "training on another collection's judgments": (
        lambda h, f: h.train(out=f, qrels="two/qrels/train.parquet"),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "training on all splits": (
        lambda h, f: h.train(out=f, qrels="one/qrels"),
        1,
        ("holds several tables of qrels (test.parquet, train.parquet)",),
    ),
    "topics of other queries": (
        lambda h, f: h.train("--query-clusters", h / "queries-two", "--query-cluster-count", 2, out=f),
        0,
        (OTHERS, "/one", "/two"),
    ),
    "a teacher of the batch of two models": (
        lambda h, f: h.train(
            *("--loss", "batch-margin-mse", "--batch-teacher", h / "corpus-one", h / "queries-by-two"), out=f
        ),
        1,
        ("encoded by another model", "/model-one", "/model-two"),
    ),
    "a teacher of the batch of another corpus": (
        lambda h, f: h.train(
            *("--loss", "batch-margin-mse", "--batch-teacher", h / "corpus-two", h / "queries-one"), out=f
        ),
        0,
        (ANOTHER, "/one", "/two"),
    ),
    "validation on a run of another corpus": (
        lambda h, f: h.train(
            *("--dev-qrels", h / "one/qrels/test.parquet", "--dev-run", h / "run-two.parquet"),
            *("--validate-every", 1),
            out=f,
        ),
        0,
        (ANOTHER, "/one", "/two"),
    ),
    "fixed documents of another corpus": (
        lambda h, f: h.train("--document-embeddings", h / "corpus-two", "--dynamic-negatives", 3, out=f),
        1,
        ("does not hold the documents of this corpus",),
    ),
    "fixed documents of another model": (
        lambda h, f: h.train("--document-embeddings", h / "corpus-by-two", "--dynamic-negatives", 3, out=f),
        1,
        ("was not made by the model that is trained", "/model-one", "/model-two"),
    ),
    # the same output again
    "finished vectors of another corpus": (
        lambda h, f: h.encode("--corpus", h / "two", out=changed(h, f, "corpus-one")),
        1,
        ("its input 'corpus' has changed", "(one before", "/two now"),
    ),
    "unfinished vectors of another corpus": (
        lambda h, f: h.encode("--corpus", h / "two", out=begun(changed(h, f, "corpus-one"))),
        1,
        ("is unfinished, but its input 'corpus' has changed", "(one before", "/two now"),
    ),
    "unfinished vectors of another model": (
        lambda h, f: h.encode("--corpus", h / "one", out=begun(changed(h, f, "corpus-one")), model="model-two"),
        1,
        ("is unfinished, but its input 'model' has changed", "(model-one before", "/model-two now"),
    ),
}


TRAINED = (
    "negatives of another corpus",
    "a teacher of another corpus",
    "training on another collection's judgments",
    "topics of other queries",
    "a teacher of the batch of another corpus",
    "validation on a run of another corpus",
)  # which take a step, and so some time


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in TRAINED else name for name in PAIRINGS]
)
def test_what_does_not_belong_together_never_passes_without_a_word(
    name: str, house: House, tmp_path: Path, retrievo: Callable
) -> None:
    make, code, words = PAIRINGS[name]
    outcome = retrievo(*make(house, tmp_path))
    assert outcome.code == code, outcome.err
    line = next((line for line in outcome.err.splitlines() if words[0] in line), outcome.err)
    for word in words:
        assert word in outcome.err, line
    assert "Traceback" not in outcome.err


def test_there_are_at_least_forty() -> None:
    assert len(PAIRINGS) - len(TRAINED) >= 40
    assert PAIRINGS.keys() > set(TRAINED)


def test_what_belongs_together_passes_without_a_word(house: House, tmp_path: Path, retrievo: Callable) -> None:
    """Copies, moved files, splits and the same texts under other names are no other tables."""
    shutil.copytree(house / "one", tmp_path / "copy")
    table = pq.read_table(house / "one" / "queries.parquet")
    pq.write_table(table.slice(2, 5), tmp_path / "some.parquet")
    index, run = house / "corpus-one", house / "run-one.parquet"
    copy = ("--corpus", tmp_path / "copy", "--queries", tmp_path / "copy", "--qrels", tmp_path / "copy")
    commands = {
        "fused": house.search("--index", index, "--run", run, out=tmp_path / "fused", queries=tmp_path / "copy"),
        "some": house.search("--index", index, out=tmp_path / "some", queries=tmp_path / "some.parquet"),
        "evaluated": ["evaluate", "--run", run, tmp_path / "some" / "out.parquet", *copy[4:], "--metrics", "mrr@2"],
        "mined": ["mine-negatives", *copy, "--source", "run", "--run", run, "--output", tmp_path / "n.parquet"],
    }
    for name, command in commands.items():
        outcome = retrievo(*command)
        assert outcome.code == 0, (name, outcome.err)
        assert "warning" not in outcome.err, (name, outcome.err)
        assert "another" not in outcome.err, (name, outcome.err)
