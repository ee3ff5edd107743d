"""The library's face: light to import, typed, documented, and the same bytes as the command line."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import retrievo
from retrievo.cli import COMMANDS, app, several_flags
from retrievo.retrieval.embeddings import Embeddings
from retrievo.support.commandline import expand_flags, run_app

PACKAGE = Path(retrievo.__file__).parent
HEAVY = ("torch", "transformers", "faiss", "numpy", "scipy", "pyarrow", "matplotlib", "typer", "rich")
PROBE = """
import json, sys, time
start = time.perf_counter()
import retrievo
took = time.perf_counter() - start
names = dir(retrievo)
print(json.dumps([took, [name for name in %r if name in sys.modules]]))
"""
# verb of the command line -> function, where they are not the same word
NAMED_OTHERWISE = {"import": "import_dataset", "run": "run_recipe"}

Run = Callable[..., None]


@pytest.fixture
def run(retrievo: Callable) -> Run:
    """A command that must end well."""

    def command(*arguments: object) -> None:
        outcome = retrievo(*arguments)
        assert outcome.code == 0, outcome.err

    return command


def test_importing_costs_nothing() -> None:
    tries = [
        subprocess.run([sys.executable, "-c", PROBE % (HEAVY,)], capture_output=True, check=True) for _ in range(3)
    ]
    took, heavy = zip(*(json.loads(tried.stdout) for tried in tries), strict=True)
    assert min(took) < 0.15
    assert heavy == ([], [], [])


@pytest.mark.parametrize("name", retrievo.__all__)
def test_every_public_name_is_there_documented_and_typed(name: str) -> None:
    found = getattr(retrievo, name)
    assert inspect.getdoc(found)
    if inspect.isclass(found):
        public = [getattr(found, member) for member in vars(found) if not member.startswith("_")]
        methods = [member for member in public if inspect.isroutine(member)]
        assert [member.__name__ for member in methods if not inspect.getdoc(member)] == []
    else:
        signature = inspect.signature(found)
        assert signature.return_annotation is not inspect.Signature.empty
        assert [known.name for known in signature.parameters.values() if known.annotation is known.empty] == []


def test_what_types_see_is_what_is_loaded() -> None:
    """The imports under TYPE_CHECKING and the table of homes name the same things in the same places."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retrievo.")
        for alias in node.names
        if alias.name == alias.asname
    }
    loaded = {name: f"retrievo.{home}" for name, home in retrievo._HOME_OF.items()}
    assert seen == loaded
    assert set(retrievo.__all__) <= set(dir(retrievo))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'retrievo' has no attribute 'trian'"):
        retrievo.trian  # noqa: B018


def test_every_verb_is_a_function_of_its_config() -> None:
    for name, command in COMMANDS.items():
        if name == "evaluate":  # which takes runs and judgments too
            continue
        found = getattr(retrievo, NAMED_OTHERWISE.get(name, name.replace("-", "_")))
        parameters = list(inspect.signature(found).parameters)
        assert parameters[0] == "config"
        assert set(parameters[1:]) == set(inspect.signature(command.config).parameters)
        assert getattr(retrievo, command.config.__name__) is command.config


def test_no_module_directly_below_the_package_bears_a_public_name() -> None:
    modules = {path.stem for path in PACKAGE.glob("*")}
    assert modules & {*retrievo.__all__, *(name.replace("-", "_") for name in COMMANDS)} == set()


def test_submodules_are_still_found() -> None:
    assert importlib.import_module("retrievo.commands.train").train is retrievo.train


# --------------------------------------------------------------------------------------- the bytes of the command line


def vectors_of(folder: Path) -> np.ndarray:
    return np.concatenate([block for _, block in Embeddings(folder).blocks(1 << 20)])


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 100), ("bfloat16", 9)])
def test_encoding_is_that_of_the_command_line(
    dtype: str,
    rows: int,
    tiny_model: Path,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    """Also where there are several shards, in whose chunks other texts lie."""
    for module in ("data.shards", "retrieval.embeddings", "models.encoder"):
        monkeypatch.setattr(
            f"retrievo.{module}.shard_bounds", lambda n: [(i, min(n, i + rows)) for i in range(0, n, rows)]
        )
    encoder = retrievo.Encoder.load(tiny_model)
    corpus, queries = retrievo.read_corpus(toy_dataset), retrievo.read_queries(toy_dataset)
    ours = {
        "corpus": encoder.encode_documents(corpus["text"], corpus["title"], dtype=dtype, chunk_tokens=64),
        "queries": encoder.encode_queries(queries["text"].to_pylist(), dtype=dtype, chunk_tokens=64),
    }
    flags = ("--storage-dtype", "float32", "--dtype", dtype, "--chunk-tokens", 64)
    for noun, vectors in ours.items():
        run("encode", "--model", tiny_model, f"--{noun}", toy_dataset, "--output", tmp_path / noun, *flags)
        assert vectors.dtype == np.float32
        assert vectors.tobytes() == vectors_of(tmp_path / noun).tobytes()


def test_an_encoder_that_was_rounded_refuses_to_be_exact(tiny_model: Path) -> None:
    encoder = retrievo.Encoder.load(tiny_model)
    assert encoder.encode_queries([], dtype="float32").shape == (0, 32)
    encoder.encode_queries(["wing"], dtype="bfloat16")
    with pytest.raises(retrievo.RetrievoError, match="--dtype: found 'float32', but this model was rounded"):
        encoder.encode_queries(["wing"], dtype="float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda encoder: encoder.encode_queries("wing"), "was given one text; expected a list of texts"),
        (lambda encoder: encoder.encode_documents(["wing", None]), "item 1 is NoneType; expected a text"),
        (lambda encoder: encoder.encode_documents(["wing"], titles=[]), "was given 0 titles for 1 texts"),
        (lambda encoder: encoder.encode_queries(["wing"], dtype="float8"), "--dtype: 'float8'; did you mean 'float32'"),
    ],
)
def test_what_is_no_list_of_texts_is_named(call: Callable[[Any], object], message: str, tiny_model: Path) -> None:
    with pytest.raises(retrievo.RetrievoError, match=message):
        call(retrievo.Encoder.load(tiny_model))


def test_scores_of_pairs_are_those_of_the_command_line(
    tiny_model: Path, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    for module in ("commands.rerank", "models.cross_encoder"):
        monkeypatch.setattr(f"retrievo.{module}.PAIRS_PER_SHARD", 7)
    retrievo.CrossEncoder.load(tiny_model, train=True).save(tmp_path / "ranker")
    corpus, queries = retrievo.read_corpus(toy_dataset), retrievo.read_queries(toy_dataset)
    rows = [(query, (5 * query + step) % 240) for query in range(6) for step in range(3)]
    lines = [f"q{query} Q0 d{document} 0 {-at} x\n" for at, (query, document) in enumerate(rows)]
    (tmp_path / "run.trec").write_text("".join(lines))
    pairs = [(queries["text"][query].as_py(), corpus["text"][document].as_py()) for query, document in rows]
    titles = [corpus["title"][document].as_py() for _, document in rows]
    scores = retrievo.CrossEncoder.load(tmp_path / "ranker").score(pairs, titles)
    tables = ("--corpus", toy_dataset, "--queries", toy_dataset)
    run(
        "rerank",
        "--run",
        tmp_path / "run.trec",
        "--model",
        tmp_path / "ranker",
        *tables,
        "--output",
        tmp_path / "o.parquet",
    )
    theirs = retrievo.read_run(tmp_path / "o.parquet")
    found = {(q, d): s for q, d, s in zip(*(theirs[name].to_pylist() for name in theirs.column_names[:3]), strict=True)}
    assert [found[f"q{query}", f"d{document}"] for query, document in rows] == scores.tolist()
    with pytest.raises(retrievo.RetrievoError, match=r"item 0 is 'wing'; expected a pair \(query, text\)"):
        retrievo.CrossEncoder.load(tmp_path / "ranker").score(["wing"])


@pytest.fixture
def home(tiny_model: Path, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what docs/library.md calls `scifact`, `model` and `ranker`."""
    shutil.copytree(toy_dataset, tmp_path / "scifact")
    shutil.copytree(tiny_model, tmp_path / "model")
    retrievo.CrossEncoder.load(tiny_model, train=True).save(tmp_path / "ranker")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # some seconds: torch, Java and three models
def test_every_line_of_the_page_runs(home: Path, capsys: pytest.CaptureFixture[str], run: Run) -> None:
    """In the order of the page, in one process; then the command line finds the same."""
    page = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == page.count("```") / 2 > 6, "a block that is no Python"
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert "encode(): unknown key 'corpse'; did you mean 'corpus'?" in capsys.readouterr().out
    pq.write_table(names["queries"], home / "some.parquet")
    for index, hits in (("scifact-bm25", "found"), ("scifact-vectors", "near")):
        run("search", "--index", index, "--queries", "some.parquet", "--depth", 100, "--output", f"{hits}.parquet")
        theirs, ours = retrievo.read_run(home / f"{hits}.parquet"), names[hits]
        assert theirs["query_id"].to_pylist() == ours["query"].to_pylist()
        assert theirs["doc_id"].to_pylist() == ours["id"].to_pylist()
        assert theirs["rank"].to_pylist() == ours["rank"].to_pylist()
        assert theirs["score"].to_numpy().tobytes() == ours["score"].to_numpy().tobytes()
    runs = ("--run", "found.parquet", "--run", "near.parquet")
    fusion = ("--fuse", "zscore", "--fuse-weights", "1,0.5", "--depth", 100)
    run("search", *runs, *fusion, "--queries", "some.parquet", "--output", "fused.parquet")
    assert retrievo.read_run("fused.parquet").equals(names["fused"])
    flags = ("--qrels", "scifact/qrels/train.parquet", "--metrics", "ndcg@10", "recall@100", "--json")
    capsys.readouterr()
    told = json.loads(outcome("evaluate", "--run", "found.parquet", *flags))
    assert told["found"] == dict(names["result"])


def outcome(*arguments: object) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_app(app, expand_flags(list(map(str, arguments)), several_flags())) == 0
    return out.getvalue()


def test_runs_and_judgments_are_the_same_as_paths_tables_and_dicts(tmp_path: Path) -> None:
    lines = "q1 Q0 d1 1 2.5 x\nq1 Q0 d2 2 1.5 x\nq2 Q0 d2 1 1.0 x\n"
    (tmp_path / "run.trec").write_text(lines)
    (tmp_path / "qrels.txt").write_text("q1 0 d2 2\nq2 0 d2 1\n")
    scores = {"q1": {"d1": 2.5, "d2": 1.5}, "q2": {"d2": 1.0}}
    grades = {"q1": {"d2": 2}, "q2": {"d2": 1}}
    runs = (tmp_path / "run.trec", retrievo.read_run(tmp_path / "run.trec"), scores)
    judgments = (tmp_path / "qrels.txt", retrievo.read_qrels(tmp_path / "qrels.txt"), grades)
    found = [dict(retrievo.evaluate(one, other, ["mrr@10", "ndcg@3"])) for one in runs for other in judgments]
    assert found == [found[0]] * 9
    assert found[0]["mrr@10"] == 0.75
    fused = [retrievo.fuse([one, scores]) for one in runs]
    assert all(one.equals(fused[0]) for one in fused)


def test_a_corpus_opens_by_a_path_as_text(toy_dataset: Path) -> None:
    corpus = retrievo.Corpus(str(toy_dataset))
    assert (len(corpus), corpus.path) == (240, toy_dataset)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrievo.evaluate(3, {"q": {"d": 1}}), "run: was given int; expected a path, an Arrow table or dicts"),
        (lambda: retrievo.evaluate({"q": {"d": "x"}}, {"q": {"d": 1}}), "run: holds what is no number"),
        (lambda: retrievo.evaluate({"q": {"d": 1}}, {"q": {"d": 1.5}}), "qrels: holds what is no number"),
        (lambda: retrievo.evaluate({"q": {"d": 1}}), "no judgments"),
        (lambda: retrievo.evaluate({"q": {"d": 1}}, {"q": {"d": 1}}, conventon="beir"), "did you mean 'convention'"),
        (lambda: retrievo.evaluate({"q": {"d": 1}}, {"q": {"d": 1}}, baseline="x"), "baseline: found 'x'"),
        (lambda: retrievo.evaluate({"q": {"d": 1}}, {"q": {"d": 1}}, "mrr@10")["ndcg@10"], "has no metric 'ndcg@10'"),
        (lambda: retrievo.build_index(["x"], "exact"), "type exact: needs vectors"),
        (lambda: retrievo.build_index(["x"], langauge="de"), "unknown option 'langauge'; did you mean 'language'"),
        (lambda: retrievo.build_index(np.eye(2), "exact", ids=["x"]), "ids: found 1 different ones; expected 2"),
        (
            lambda: retrievo.build_index(np.eye(2), "exact").search(np.eye(3)),
            r"shape \(3, 3\); expected \[queries, 2\]",
        ),
        (lambda: retrievo.search(interactive=True, index="x"), "--interactive: is for a person at a terminal"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(retrievo.RetrievoError, match=message):
        call()


def test_a_temporary_index_goes_with_its_object() -> None:
    index = retrievo.build_index(np.eye(2, dtype=np.float32), "exact")
    assert (len(index), index.path.is_dir()) == (2, True)
    index.close()
    assert not index.path.exists()
