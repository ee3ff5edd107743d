import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pretraining_ranks.py, which other processes run too


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors of some dozen numbers gain nothing from threads, which wait for each other where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
