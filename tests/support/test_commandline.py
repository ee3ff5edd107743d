"""What is typed reaches the Config; several values may follow one flag."""

from __future__ import annotations

import pytest

from retrievo.support.commandline import spread

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
    assert spread(typed.split(), FLAGS) == spread_out.split()
