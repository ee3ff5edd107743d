"""Resolves a path to Parquet files: one file, the shards of one table in a folder, a glob, or a dataset folder.

A folder is read as one table only where that is unambiguous. Different splits of judgments, different runs and tables
of another kind are never silently joined.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from retrievo.data.foreign import import_command
from retrievo.support.artifact import kind_of
from retrievo.support.errors import RetrievoError
from retrievo.support.publishing import is_manifest_beside

NOUNS = ("corpus", "queries", "qrels", "run", "negatives", "answers")
_APART = ("qrels", "run")  # kinds of which a folder may hold several independent tables


def table_files(path: Path, noun: str) -> list[Path]:
    """The Parquet files behind a path: one file, a folder of shards, a glob, or a dataset folder that has such a table.

    noun: the kind of table (one of NOUNS).
    Raises: RetrievoError where there are none, or where a folder holds more than one table.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = sorted(map(Path, glob.glob(str(path))))
        files = [file for file in found if file.is_file() and not is_manifest_beside(file)]
        if not files and noun == "qrels" and path.parent.name == "qrels":
            raise _no_split(path)
        if not files:
            raise RetrievoError(path, "no such file or folder", f"the {noun}", "check the path")
        return files
    if (path / f"{noun}.parquet").is_file():
        return [path / f"{noun}.parquet"]
    if noun == "qrels" and (path / "qrels").is_dir():
        return _default_split(path / "qrels")
    return _of_folder(path, noun)


def training_split(path: Path) -> Path:
    """The training judgments of a dataset folder; any other path as it is.

    What trains a model must not be what it is evaluated on, for which a dataset folder stands for its test split.
    """
    return path / "qrels" / "train.parquet" if (path / "qrels").is_dir() else path


def _no_split(path: Path) -> RetrievoError:
    """What a dataset folder has instead of the split that was asked for."""
    folder = path.parent.parent
    splits = sorted(file.stem for file in path.parent.glob("*.parquet"))
    there = sorted(file.name for file in folder.glob("*.parquet"))
    if splits:
        other = f"--split {splits[0]}"
        fix = f"pass {other}"
        if path.stem == "train":  # a model that has seen what it is evaluated on would be measured too high
            fix = f"pass a file of judgments, or {other} where nothing is evaluated on it"
        return RetrievoError(path, f"no such file; {folder} has the splits {', '.join(splits)}", None, fix)
    has = f"; {folder} has {', '.join(there)} and no relevance judgments" if there else ""
    return RetrievoError(path, f"no such file{has}", None, "pass a file of judgments")


def _of_folder(path: Path, noun: str) -> list[Path]:
    """The files of a folder that form one table: the files named after `noun`, else the files named after no noun.

    Raises: RetrievoError where there are none, files of both kinds, or several tables.
    """
    files = sorted(path.glob("*.parquet"))
    own = [file for file in files if _is_named(file, noun)]
    plain = [file for file in files if not any(_is_named(file, other) for other in NOUNS)]
    if not own and not plain:
        raise _none_found(path, noun, files)
    if own and plain:
        found = f"holds {own[0].name} beside {plain[0].name}"
        raise RetrievoError(path, found, "files of one table", f"name the files: --{noun} '{path}/{noun}*.parquet'")
    files = own or plain
    if noun in _APART and len(_tables(files)) > 1:
        names = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
        fix = f"name it: --{noun} {files[0]}"
        raise RetrievoError(path, f"holds several tables of {noun} ({names})", "one of them", fix)
    return files


def _is_named(file: Path, noun: str) -> bool:
    """Whether a file is named after a noun: `corpus`, `corpus-0` and `corpus.part1` are, `corpuscle` is not."""
    return re.match(rf"{noun}(?![a-z])", file.stem.lower()) is not None


def _none_found(path: Path, noun: str, others: Sequence[Path]) -> RetrievoError:
    if (kind := kind_of(path)) not in (None, "dataset"):
        return RetrievoError(path, f"is of kind '{kind}'", f"the {noun}", "check the path")
    found = f"holds no Parquet file for the {noun}"
    if others:
        found += f" (it holds {', '.join(file.name for file in others[:5])})"
    command = None if others else import_command(path)
    fix = f"import the data first{f': {command}' if command else ''}, or pass another path"
    if inside := sorted((path / noun).glob("*.parquet")):  # a dataset whose queries are split into several tables
        fix = f"pass --{noun} {' or '.join(map(str, inside[:5]))}"
    return RetrievoError(path, found, None, fix)


def _tables(files: Sequence[Path]) -> list[list[Path]]:
    """Groups files into tables: shards have the same name except for a number that counts up from 0 or 1.

    `part-0000` and `part-0001` are one table; `dev` and `test` are two, and so are `dl-2019` and `dl-2020`.
    """
    alike: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        number = re.search(r"\d+", file.stem)
        name = re.sub(r"\d+", "#", file.stem, count=1) if number else file.stem
        alike.setdefault(name, []).append((int(number[0]) if number else 0, file))
    tables = []
    for shards in alike.values():
        numbers = sorted(number for number, _ in shards)
        counted = numbers in (list(range(len(numbers))), list(range(1, 1 + len(numbers))))
        tables += [[file for _, file in shards]] if counted else [[file] for _, file in shards]
    return tables


def _default_split(folder: Path) -> list[Path]:
    """The default split of a dataset folder's qrels: test, else dev (also `dev.small`), with all of its shards."""
    for split in ("test", "dev"):
        files = sorted(folder.glob(f"{split}*.parquet"), key=lambda path: path.stem)  # test before test-hard
        if files:
            return _tables(files)[0]
    others = ", ".join(sorted(file.name for file in folder.glob("*.*")))
    has = f" (it holds {others})" if others else ""
    raise RetrievoError(folder, f"has neither test.parquet nor dev.parquet{has}", None, "name another split or file")
