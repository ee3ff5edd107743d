"""The check of gradients: it finds nothing where all is right, and it can fail."""

from __future__ import annotations

import pytest
import torch
from assembled import right, wrong

from retrievo.support.errors import RetrievoError
from retrievo.training.engine.verify import difference, verify


def test_all_ways_of_the_engine_lead_to_one_gradient(device: torch.device) -> None:
    checks = verify(right, device, seed=0)
    assert len(checks) == 3
    assert all(0 <= check.difference < 1e-5 for check in checks)
    assert any(check.difference > 0 for check in checks), "they are not one and the same computation"


def test_vectors_that_depend_on_their_chunk_are_found_out() -> None:
    with pytest.raises(RetrievoError, match=r"--verify-gradients: relative difference .* by the gradient cache"):
        verify(wrong, torch.device("cpu"), seed=0)


def test_a_parameter_that_only_one_way_reaches_is_a_difference() -> None:
    assert difference({"a": torch.ones(2)}, {}) == float("inf")
    assert difference({"a": torch.ones(2)}, {"a": torch.tensor([1.0, 0.5])}) == 0.5
