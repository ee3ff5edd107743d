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
from retrievo.models.tokens import Tokenization, Tokenized
from retrievo.objectives.choices import FinetuneConfig
from retrievo.objectives.objective import Objective


class Example(NamedTuple):
    """A query with its group of documents, as texts and identities; own positive first."""

    query: str
    documents: Sequence[str]  # [G]
    titles: Sequence[str | None]  # [G]
    document_ids: np.ndarray  # [G] row numbers in the corpus
    document_hashes: np.ndarray  # [G] text hashes
    relevant_ids: np.ndarray  # [r] all relevant documents of the query
    relevant_hashes: np.ndarray  # [r]


@dataclass(frozen=True)
class FinetuneCollator:
    """Tokenizes examples into a Batch with the named sets `query` [B] and `document` (groups one after the other)."""

    query: Tokenization
    document: Tokenization
    pad_id: int

    def __call__(self, items: Sequence[Example]) -> Batch:
        queries = self.query.tokenize([item.query for item in items])
        documents = self.document.tokenize(
            [text for item in items for text in item.documents], [title for item in items for title in item.titles]
        )
        relevant = Relevant(
            ids=_flat([item.relevant_ids for item in items]),
            hashes=_flat([item.relevant_hashes for item in items]),
            offsets=torch.tensor([0, *(len(item.relevant_ids) for item in items)]).cumsum(0),
        )
        return Batch(
            rows={"query": _rows(queries), "document": _rows(documents)},
            counts={"pairs": len(items)},
            pad_ids={"query": self.pad_id, "document": self.pad_id},
            ids={"document": _flat([item.document_ids for item in items])},
            hashes={"document": _flat([item.document_hashes for item in items])},
            groups=torch.tensor([len(item.documents) for item in items], dtype=torch.int64),
            relevant=relevant,
        )


def _rows(tokenized: Tokenized) -> Rows:
    return Rows(torch.from_numpy(tokenized.tokens), torch.from_numpy(tokenized.offsets))


def _flat(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *arrays]).astype(np.int64))


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
        encoder = self.encoder
        return FinetuneCollator(encoder.tokenization("query"), encoder.tokenization("document"), encoder.pad_id)

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
