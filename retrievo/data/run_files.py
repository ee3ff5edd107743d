"""The suffixes of run files and their formats (standard library only)."""

from __future__ import annotations

from pathlib import Path

from retrievo.support.errors import UsageError

TREC_SUFFIXES, MSMARCO_SUFFIXES = (".trec", ".txt", ".run"), (".tsv",)
RUN_SUFFIXES = (".parquet", *TREC_SUFFIXES, *MSMARCO_SUFFIXES)


def run_suffix(path: Path) -> str:
    """The suffix that determines the format, ignoring `.gz`; empty where there is none."""
    return Path(path.name.removesuffix(".gz")).suffix


def run_name(path: Path) -> str:
    """The name of a run, which is that of its file: `runs/bm25.trec.gz` is named bm25."""
    suffix = run_suffix(path)
    return path.name.removesuffix(".gz").removesuffix(suffix if suffix in (*RUN_SUFFIXES, ".pq") else "")


def check_run_suffix(path: Path) -> None:
    """Raises UsageError where the suffix of an output is not that of a run format."""
    suffix = run_suffix(path)
    if suffix not in RUN_SUFFIXES or (path.suffix == ".gz" and suffix == ".parquet"):
        known = " ".join(RUN_SUFFIXES)
        raise UsageError("--output", f"found '{path}'", f"a file that ends in {known} (text also .gz)")
