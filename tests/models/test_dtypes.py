"""Names of compute dtypes."""

from __future__ import annotations

import pytest
import torch

from retrievo.models import dtypes
from retrievo.support.errors import UsageError


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("float32", torch.float32), ("bf16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_name_or_its_alias_is_a_dtype(name, dtype):
    assert dtypes.resolve_dtype(name, "cpu") == dtype


@pytest.mark.parametrize(
    ("found", "dtype"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, found, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert dtypes.resolve_dtype("auto", "cpu") == dtype


@pytest.mark.parametrize(("major", "dtype"), [(7, torch.float32), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_auto_is_bfloat16_from_ampere_on(monkeypatch, major, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert dtypes.resolve_dtype("auto", "cuda:0") == dtype


def test_an_unknown_name_is_a_usage_error_with_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        dtypes.resolve_dtype("bfloat", "cpu")
