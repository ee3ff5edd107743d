"""Tensors arrive on the device that was asked for, with their values."""

from __future__ import annotations

import pytest
import torch

from retrievo.models.devices import resolve_device, sent
from retrievo.support.errors import RetrievoError


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_tensor_is_sent_with_its_values(device: str) -> None:
    tensor = torch.arange(6).view(2, 3)
    arrived = sent(tensor, torch.device(device))
    assert arrived.device.type == device
    assert arrived.tolist() == tensor.tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_that_is_not_there_is_an_error_and_auto_is_the_cpu() -> None:
    with pytest.raises(RetrievoError, match="no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
