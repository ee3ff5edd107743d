"""A run that could learn nothing is an error; one that could learn from some rows says from how many not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retrievo.support.errors import RetrievoError
from retrievo.training.engine.contrast import NegativeCounts
from retrievo.training.objectives.objective import WITH_NEGATIVE

CPU = torch.device("cpu")


def line(share: float, slope: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"gradient_norm": slope, "pairs": 10, f"infonce{WITH_NEGATIVE}": share, **more}


def test_queries_without_any_negative_are_an_error_that_says_so() -> None:
    seen = NegativeCounts()
    seen.add(line(0.0))
    with pytest.raises(RetrievoError, match="nothing was learned in 1 steps: none of the queries had a negative"):
        seen.check(Path("out"), CPU, ends=False)


def test_a_gradient_of_zero_is_an_error_at_the_end_only() -> None:
    seen = NegativeCounts()
    seen.add(line(1.0, 0.0))
    seen.check(Path("out"), CPU, ends=False)
    with pytest.raises(RetrievoError, match="the gradient was 0"):
        seen.check(Path("out"), CPU)


def test_lines_of_validations_do_not_count() -> None:
    seen = NegativeCounts()
    seen.add({"step": 3, "dev_mrr@10": 0.5})
    seen.check(Path("out"), CPU)
    assert seen.steps == 0


def test_one_loss_that_learns_is_enough(said: Callable[[], str]) -> None:
    seen = NegativeCounts()
    for _ in range(2):
        seen.add(line(0.8, **{f"kl{WITH_NEGATIVE}": 0.0}))
    seen.check(Path("out"), CPU)
    told = said()
    assert "infonce learned nothing from 4 of 20 queries of all steps (20.0%)" in told
    assert "kl learned nothing from 20 of 20 queries of all steps (100.0%)" in told
