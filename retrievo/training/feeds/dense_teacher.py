"""A teacher that scores every query of a batch against every document of the batch, by vectors of a dense model."""

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
    """A dense model's vectors of queries and documents; their inner products are the teacher's scores.

    folders: embeddings of the documents and of the queries, in any order. opened: opens one of them, given the name of
    the input, the path and the role.
    Raises: RetrievoError where the folders are not one of documents and one of queries, or are of different models.
    """

    def __init__(self, folders: Sequence[Path], opened: Open):
        embeddings = [Embeddings(folder) for folder in folders]
        roles = [vectors.role for vectors in embeddings]
        if sorted(roles) != ["document", "query"]:
            fix = "pass the embeddings of the corpus and those of the queries"
            raise RetrievoError("--batch-teacher", f"found vectors of {' and '.join(roles)}", "document and query", fix)
        check_same_model(folders[1], embeddings[1].manifest, folders[0], embeddings[0].manifest)
        if embeddings[0].dim != embeddings[1].dim:
            found = f"has vectors of {embeddings[1].dim} dimensions"
            raise RetrievoError(folders[1], found, f"{embeddings[0].dim}, as {folders[0]}", "encode it again")
        by_role = {role: opened(f"batch-teacher-{role}", path, role) for path, role in zip(folders, roles, strict=True)}
        self.queries, self.documents = by_role["query"], by_role["document"]

    def vectors(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Float32 vectors of the queries [B, D], and of the documents group after group [n, D]."""
        queries = np.array([draw.query for draw in draws], np.int64)
        documents = np.concatenate([np.empty(0, np.int64), *(draw.documents for draw in draws)])
        found = {"query": self.queries.of(queries), "document": self.documents.of(documents)}
        return {name: torch.from_numpy(vectors) for name, vectors in found.items()}
