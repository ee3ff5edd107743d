"""The library's face: light to import, typed, documented, and the same bytes as the command line."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrievo
from retrievo.cli import COMMANDS
from retrievo.retrieval.embeddings import Embeddings

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
        if name in ("search", "evaluate"):
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
