"""What is typed reaches the Config; several values may follow one flag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrievo.support.commandline import expand_flags

FLAGS = {"evaluate": {"--metrics", "--run"}}


@pytest.mark.parametrize(
    ("typed", "spread_out"),
    [
        ("evaluate --metrics a b", "evaluate --metrics a --metrics b"),
        ("evaluate --metrics a --metrics b", "evaluate --metrics a --metrics b"),
        (
            "evaluate --run x y --qrels q --metrics a b c",
            "evaluate --run x --run y --qrels q --metrics a --metrics b --metrics c",
        ),
        ("evaluate --metrics=a b --qrels q", "evaluate --metrics a --metrics b --qrels q"),
        ("evaluate --json --metrics a", "evaluate --json --metrics a"),
        ("evaluate --metrics", "evaluate --metrics"),
        ("search --metrics a b", "search --metrics a b"),
        ("", ""),
    ],
)
def test_values_after_one_flag_are_spread(typed: str, spread_out: str) -> None:
    assert expand_flags(typed.split(), FLAGS) == spread_out.split()


def test_a_value_that_is_typed_twice_is_told(tmp_path: Path, toy_dataset: Path, retrievo: Callable) -> None:
    """The last one counts, as everywhere on a command line; a list takes them all."""
    run = write_run(tmp_path / "run.trec")
    flags = ["evaluate", "--run", run, "--qrels", toy_dataset, "--metrics", "map", "--metrics", "mrr@10"]
    once = retrievo(*flags, "--format", "json")
    twice = retrievo(*flags, "--format", "table", "--format=json")
    assert (once.code, twice.code, twice.out) == (0, 0, once.out)
    assert "--format: is given 2 times and takes one value; the last one counts" in twice.err
    assert "is given" not in once.err


def write_run(path: Path) -> Path:
    path.write_text("q160 Q0 d160 1 1.0 x\n")
    return path
