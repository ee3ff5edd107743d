"""The documentation strings of installed Python packages as a dataset: made on the spot, read with `ast` alone.

The summary line of a docstring is a query, what follows it is the document that answers it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from retrievo.data.importers.dataset import settings_text
from retrievo.data.tables import CORPUS, QRELS, QUERIES, Schema, TableWriter
from retrievo.data.text_identity import canonical
from retrievo.support import console
from retrievo.support.artifact import Manifest, Output
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

# import name -> distribution, of packages that come with retrievo and are read in a second or two each (torch and
# transformers together take a minute; half of sympy's docstrings are formulas)
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "networkx": "networkx",
    "huggingface_hub": "huggingface_hub",
    "fontTools": "fonttools",
    "fsspec": "fsspec",
    "rich": "rich",
    "PIL": "pillow",
    "jinja2": "jinja2",
}
TEST_SHARE, DEV_SHARE = 0.15, 0.05  # of the modules
SPLITS = ("train", "dev", "test")
SUMMARY_WORDS, BODY_WORDS = range(4, 41), range(5, 1 << 30)
# tests, copies of other packages, and what merely lies inside the standard library's folder
_SKIPPED = {"test", "tests", "testing", "_vendor", "vendored", "externals", "__pycache__"}
_SKIPPED |= {"site-packages", "dist-packages", "idlelib", "lib2to3"}
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SIGNATURE = re.compile(r"[\w.]+\(.*\)( *->.*)?")  # some docstrings begin with one, where a summary should stand


class Package(NamedTuple):
    """Python sources to read: the folder, and the one below which paths are module names."""

    name: str
    version: str
    folder: Path
    home: Path


class Docstring(NamedTuple):
    """A documentation string in two: its first paragraph on one line, and the rest."""

    name: str  # qualified, as numpy.linalg._linalg.norm
    module: str
    summary: str
    body: str


def installed_packages() -> list[Package]:
    """The standard library and those of PACKAGES that are installed; none is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [Package("python", platform.python_version(), library, library)]
    for name, distribution in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                folder, version = Path(spec.origin).parent, importlib.metadata.version(distribution)
                found.append(Package(name, version, folder, folder.parent))
    return found


def make_dataset(
    path: Path, packages: Sequence[Package] | None = None, *, seed: int = 0, force: bool = False
) -> Manifest:
    """Writes a dataset folder: all documents, and the queries split by module into `train`, `dev` and `test`.

    A document has no title: the name of what it describes would give words of its query away, and is its id. The
    split of a module is decided by a hash of the seed and its name, so that training sees no query of the other two;
    `queries/<split>.parquet` holds the queries of a split alone. The same packages give the same bytes.

    packages: default `installed_packages()`.

    Raises: RetrievoError where the packages hold no documentation.
    """
    packages = installed_packages() if packages is None else packages
    config = {"seed": seed, "packages": {package.name: package.version for package in packages}}
    output = Output(path, "dataset", config, {}, force=force)
    if finished := output.already_finished():
        return finished
    left_out: Counter[str] = Counter()
    with output.build():
        documents = _distinct(_usable(_read(packages, left_out), left_out), left_out)
        asked = _asked(documents)
        left_out["queries of several documents, or repeated in the document"] = len(documents) - len(asked)
        if not asked:
            raise RetrievoError(path, "the packages hold no documentation", "docstrings with a summary line and more")
        tables = _tables(documents, asked, seed)
        _write(output, tables)
        manifest = output.finish(_stats(documents, tables, left_out))
    _say(path, manifest)
    return manifest


# ------------------------------------------------------------------------------------------------------------- reading


def _read(packages: Iterable[Package], left_out: Counter[str]) -> Iterator[Docstring]:
    """All docstrings, in the order of packages, paths and lines."""
    files = [(path, package.home) for package in packages for path in _sources(package.folder)]
    with console.progress("reading docstrings", len(files), "files") as tick:
        for path, home in files:
            module = ".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__")
            tree = _parsed(path)
            left_out["unreadable files"] += tree is None
            if tree is not None:
                yield from _docstrings(tree, module)
            tick()


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _parsed(path: Path) -> ast.Module | None:
    """The syntax tree; None for a template or a file of another Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in other people's code
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            return None


def _docstrings(tree: ast.Module, module: str) -> Iterator[Docstring]:
    """The docstrings of a module; a name that is defined again (overloads, setters) gets a number."""
    seen: Counter[str] = Counter()
    for name, text in _named_texts(tree, module):
        seen[name] += 1
        summary, *rest = re.split(r"\n\s*\n", text.strip(), maxsplit=1)
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        yield Docstring(name, module, " ".join(summary.split()), "".join(rest).strip())


def _named_texts(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified names and cleaned docstrings of a definition and of all inside it, those under `if` and `try` too."""
    if isinstance(node, (*_DEFINITIONS, ast.Module)) and (text := ast.get_docstring(node)):
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            yield from _named_texts(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _named_texts(child, name)


# ------------------------------------------------------------------------------------------------------------ choosing


def _usable(docstrings: Iterable[Docstring], left_out: Counter[str]) -> Iterator[Docstring]:
    for docstring in docstrings:
        if len(docstring.body.split()) not in BODY_WORDS:
            left_out["without a body"] += 1
        elif len(docstring.summary.split()) not in SUMMARY_WORDS or _SIGNATURE.fullmatch(docstring.summary):
            left_out["without a summary line"] += 1
        else:
            yield docstring


def _distinct(docstrings: Iterable[Docstring], left_out: Counter[str]) -> list[Docstring]:
    """The first docstring of each body, by what it reads as."""
    first: dict[bytes, Docstring] = {}
    for docstring in docstrings:
        key = hashlib.blake2b(canonical(docstring.body), digest_size=16).digest()
        left_out["repeated bodies"] += key in first
        first.setdefault(key, docstring)
    return list(first.values())


def _asked(documents: Sequence[Docstring]) -> list[Docstring]:
    """The documents whose summary is a query: it is theirs alone, and they do not repeat it word by word."""
    times = Counter(_plain(document.summary) for document in documents)
    return [d for d in documents if times[_plain(d.summary)] == 1 and _plain(d.summary) not in _plain(d.body)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _split(module: str, seed: int) -> str:
    digest = hashlib.blake2b(f"{seed}\0{module}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < TEST_SHARE else "dev" if place < TEST_SHARE + DEV_SHARE else "train"


# ------------------------------------------------------------------------------------------------------------- writing


def _tables(documents: Sequence[Docstring], asked: Sequence[Docstring], seed: int) -> dict[str, pa.Table]:
    """The tables of the dataset folder by file name."""
    tables = {
        "corpus.parquet": _table(CORPUS, [d.name for d in documents], [d.body for d in documents]),
        "queries.parquet": _table(QUERIES, [_query_id(d) for d in asked], [d.summary for d in asked]),
    }
    splits = {module: _split(module, seed) for module in {d.module for d in asked}}
    for split in SPLITS:
        own = [d for d in asked if splits[d.module] == split]
        ids, summaries = [_query_id(d) for d in own], [d.summary for d in own]
        tables[f"queries/{split}.parquet"] = _table(QUERIES, ids, summaries)
        tables[f"qrels/{split}.parquet"] = _table(QRELS, ids, [d.name for d in own], [1] * len(own))
    return tables


def _table(noun: Schema, *columns: list[Any]) -> pa.Table:
    arrays = [pa.array(values, kind) for values, kind in zip(columns, noun.arrow.types, strict=True)]
    return pa.table(arrays, schema=noun.arrow)


def _query_id(docstring: Docstring) -> str:
    """Unlike the document's id: `evaluate --exclude-self` takes equal ids for the query itself."""
    return f"q:{docstring.name}"


def _stats(documents: Sequence[Docstring], tables: Mapping[str, pa.Table], left_out: Counter[str]) -> Values:
    return {
        "documents": len(documents),
        "queries": tables["queries.parquet"].num_rows,
        "qrels": {split: tables[f"qrels/{split}.parquet"].num_rows for split in SPLITS},
        "modules": len({document.module for document in documents}),
        "left_out": dict(left_out),
    }


def _write(output: Output, tables: Mapping[str, pa.Table]) -> None:
    for name, table in tables.items():
        (output.folder / name).parent.mkdir(exist_ok=True)
        with TableWriter(output.folder / name, table.schema) as writer:
            writer.write(table)
            output.record(name, writer.close())
    (output.folder / "retrievo.toml").write_text(settings_text(set(tables)), encoding="utf-8")


def _say(path: Path, manifest: Manifest) -> None:
    stats = manifest.stats
    splits = ", ".join(f"{split} {count:,}" for split, count in stats["qrels"].items())
    left_out = ", ".join(f"{what} {count:,}" for what, count in stats["left_out"].items() if count)
    console.note(f"read the docstrings of {', '.join(manifest.config['packages'])} ({stats['modules']:,} modules)")
    console.note(f"{path}: {stats['documents']:,} documents, {stats['queries']:,} queries ({splits})")
    if left_out:
        console.note(f"left out: {left_out}")
