"""Fine-tuning: each query against its positive, its own negatives and all other documents of the global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.learning.batch import Batch, Chunk, Relevant, Rows, Stats
from retrievo.learning.distributed import gather_counts, gather_rows, rank
from retrievo.learning.losses import LOSSES, Contest, identity_mask
from retrievo.models.encoder import Encoder
from retrievo.objectives.choices import FinetuneConfig
from retrievo.objectives.objective import Objective


class Example(NamedTuple):
    """A query with its group of documents, as token ids and identities; own positive first."""

    query: np.ndarray  # [L]
    documents: Sequence[np.ndarray]  # [G] of [L]
    document_ids: np.ndarray  # [G] row numbers in the corpus
    document_hashes: np.ndarray  # [G] text hashes
    relevant_ids: np.ndarray  # [r] all relevant documents of the query
    relevant_hashes: np.ndarray  # [r]


@dataclass(frozen=True)
class FinetuneCollator:
    """Examples into a Batch with the named sets `query` [B] and `document` (groups one after the other)."""

    pad_id: int

    def __call__(self, items: Sequence[Example]) -> Batch:
        relevant = Relevant(
            ids=_flat([item.relevant_ids for item in items]),
            hashes=_flat([item.relevant_hashes for item in items]),
            offsets=torch.tensor([0, *(len(item.relevant_ids) for item in items)]).cumsum(0),
        )
        documents = [document for item in items for document in item.documents]
        return Batch(
            rows={"query": _rows([item.query for item in items]), "document": _rows(documents)},
            counts={"pairs": len(items)},
            pad_ids={"query": self.pad_id, "document": self.pad_id},
            ids={"document": _flat([item.document_ids for item in items])},
            hashes={"document": _flat([item.document_hashes for item in items])},
            groups=torch.tensor([len(item.documents) for item in items], dtype=torch.int64),
            relevant=relevant,
        )


def _rows(rows: Sequence[np.ndarray]) -> Rows:
    return Rows(_flat(rows), torch.tensor([0, *map(len, rows)]).cumsum(0))


def _flat(arrays: Sequence[np.ndarray]) -> Tensor:
    """One tensor of int64; hashes of 64 bits without sign keep their bits."""
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *(array.astype(np.int64) for array in arrays)]))


class Finetune(Objective):
    """The weighted sum of losses over a rank's queries [B, D] against the documents of all ranks [P, D].

    The mean over the queries of the global batch, in shares that sum over ranks (coCondenser, eq. 14; DPR, eq. 2).
    """

    Config = FinetuneConfig
    vector_names = ("query", "document")

    def __init__(self, config: FinetuneConfig, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        start = torch.tensor(math.log(config.temperature))
        self.log_temperature = nn.Parameter(start) if config.learn_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        """What divides the scores; learned as its logarithm, so that it stays above 0."""
        return self.config.temperature if self.log_temperature is None else self.log_temperature.exp()

    def collator(self) -> FinetuneCollator:
        return FinetuneCollator(self.encoder.pad_id)

    def encode(self, chunk: Chunk) -> tuple[Tensor, None]:
        vectors = self.encoder.encode(chunk.name, chunk.input_ids, chunk.attention_mask)
        return functional.normalize(vectors, dim=-1) if self.encoder.spec.similarity == "cosine" else vectors, None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        contest = self._contest(vectors["query"], vectors["document"], batch)
        total, stats = contest.queries.new_zeros(()), Stats()
        for name, weight in zip(self.config.loss, self.config.loss_weight, strict=True):
            outcome = LOSSES[name](contest, self.temperature)
            value = outcome.loss.sum() / batch.counts["pairs"]
            total = total + weight * value
            stats[name] = value.detach()
            stats["accuracy"] = outcome.correct.sum() / batch.counts["pairs"]
        return total, stats

    def _contest(self, queries: Tensor, documents: Tensor, batch: Batch) -> Contest:
        """This rank's queries among the documents of all ranks."""
        counts = gather_counts(len(documents), documents.device)
        first = sum(counts[: rank()])  # column of this rank's first document
        positives = first + batch.groups.cumsum(0) - batch.groups  # [B]
        identities = torch.stack([batch.ids["document"], batch.hashes["document"]], dim=1)
        ids, hashes = gather_rows(identities, counts).unbind(1)  # [P], [P]
        assert batch.relevant is not None, "fine-tuning needs the relevant documents of each query"
        masked = identity_mask(batch.relevant, ids.contiguous(), hashes.contiguous(), positives)
        return Contest(queries, gather_rows(documents, counts), positives, masked)
