"""Which suffix of a run file means which format (standard library only)."""

from __future__ import annotations

from pathlib import Path

from retrievo.support.errors import UsageError

TREC_SUFFIXES, MSMARCO_SUFFIXES = (".trec", ".txt", ".run"), (".tsv",)
RUN_SUFFIXES = (".parquet", *TREC_SUFFIXES, *MSMARCO_SUFFIXES)


def run_suffix(path: Path) -> str:
    """The suffix that tells the format, `.gz` aside; empty where there is none."""
    return Path(path.name.removesuffix(".gz")).suffix


def run_name(path: Path) -> str:
    """A run is called after its file: `runs/bm25.trec.gz` is bm25."""
    suffix = run_suffix(path)
    return path.name.removesuffix(".gz").removesuffix(suffix if suffix in (*RUN_SUFFIXES, ".pq") else "")


def check_run_suffix(path: Path) -> None:
    """Raises UsageError where the name of an output does not say in which format a run should be written."""
    suffix = run_suffix(path)
    if suffix not in RUN_SUFFIXES or (path.suffix == ".gz" and suffix == ".parquet"):
        known = " ".join(RUN_SUFFIXES)
        raise UsageError("--output", f"found '{path}'", f"a file that ends in {known} (text also .gz)")
