"""A teacher that scores every query of a batch against every document of it: vectors that a dense model made before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrievo.models.model_reference import check_same_model
from retrievo.retrieval.embeddings import Embeddings
from retrievo.support.errors import RetrievoError
from retrievo.training.feeds.row_vectors import RowVectors
from retrievo.training.feeds.samplers import Draw

Open = Callable[[str, Path, str], RowVectors]


class BatchTeacher:
    """A dense model's vectors of queries and of documents, whose inner products are what it says of a pair.

    folders: embeddings of the documents and of the queries, in any order. opened: makes the vectors of one of them by
    name, path and role.
    Raises: RetrievoError where the folders are not one of each, or not by one model.
    """

    def __init__(self, folders: Sequence[Path], opened: Open):
        told = [Embeddings(folder) for folder in folders]
        roles = [vectors.role for vectors in told]
        if sorted(roles) != ["document", "query"]:
            fix = "pass the embeddings of the corpus and those of the queries"
            raise RetrievoError("--batch-teacher", f"found vectors of {' and '.join(roles)}", "document and query", fix)
        check_same_model(folders[1], told[1].manifest, folders[0], told[0].manifest)
        if told[0].dim != told[1].dim:
            found = f"has vectors of {told[1].dim} numbers"
            raise RetrievoError(folders[1], found, f"{told[0].dim}, as {folders[0]}", "encode it again")
        made = {role: opened(f"batch-teacher-{role}", path, role) for path, role in zip(folders, roles, strict=True)}
        self.queries, self.documents = made["query"], made["document"]

    def vectors(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Float32 vectors of the queries [B, D] and of the documents, group after group [n, D]."""
        queries = np.array([draw.query for draw in draws], np.int64)
        documents = np.concatenate([np.empty(0, np.int64), *(draw.documents for draw in draws)])
        found = {"query": self.queries.of(queries), "document": self.documents.of(documents)}
        return {name: torch.from_numpy(vectors) for name, vectors in found.items()}
