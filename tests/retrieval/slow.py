"""What processes that are started together do in tests."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch.distributed as dist

from retrievo.retrieval.distributed import company, search_batches
from retrievo.retrieval.embeddings import Embeddings


def slow_lead(house: Path, folder: Path) -> None:
    """A search that begins when the patience of the process group has long ended."""
    begin = dist.init_process_group
    short = {"timeout": timedelta(seconds=3)}
    dist.init_process_group = lambda *given, **options: begin(*given, **options | short)
    with company(lambda: "cpu", Embeddings) as leads:
        if leads:
            time.sleep(6)
            source, queries = house / "d", Embeddings(house / "q").take(np.arange(30))
            batches = list(search_batches(source, queries, Embeddings(source), 5, batch_size=30, device="cpu"))
            (folder / "found").write_text(str(sum(len(found.query) for found in batches)))
