"""ADORE: training of the query encoder alone, against fixed document vectors, with negatives found at each step.

Zhan et al. 2021 (Optimizing Dense Retrieval Model Training with Hard Negatives). Document vectors do not change, so
each step searches all of them with the current query vectors, and the documents that rank highest without being
relevant are the negatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retrievo.distributed.collectives import gather_counts, gather_rows
from retrievo.models.devices import sent
from retrievo.models.encoder import Encoder
from retrievo.retrieval.embeddings import Vectors
from retrievo.retrieval.exact import as_tensor
from retrievo.training.batch import Batch, Relevant
from retrievo.training.losses.losses import CandidateBatch, identity_mask, pairs_in_order
from retrievo.training.objectives.finetune import Example, Finetune, FinetuneCollator
from retrievo.training.objectives.table import AdoreConfig

_BLOCK_VALUES, _BLOCK_SCORES = 1 << 24, 1 << 25  # documents x dimensions (64 MiB), queries x documents (128 MiB)


class FixedDocuments:
    """Fixed vectors [N, D] of a corpus, and the search for each query's highest-ranked documents that are not relevant.

    vectors: in the order of the corpus. They stay memory-mapped, unless they take at most half of the free memory of a
    CUDA device: then they are moved there once. hashes: text identities of the documents [N]. left_out: ascending row
    numbers of documents that are never returned.
    """

    def __init__(self, vectors: Vectors, hashes: np.ndarray, left_out: np.ndarray):
        self.vectors, self._cosine = vectors, vectors.similarity == "cosine"
        self.hashes = torch.from_numpy(hashes.astype(np.int64))  # keeps all 64 bits
        self._ordered, self._order = self.hashes.sort()
        self._left_out = torch.from_numpy(left_out)
        self._resident: Tensor | None = None
        self._settled = False  # whether the place of the vectors has been decided

    @torch.no_grad()
    def best(self, queries: Tensor, relevant: Relevant, count: int) -> Tensor:
        """Row numbers of the `count` highest-scoring documents of each query [B, K], best first, filled up with -1.

        Documents that are relevant to the query, or have the text of one that is, are left out. Scores are float32
        products.
        """
        scores, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        rows, (query, row) = rows.to(queries.device), self._false_negatives(relevant)
        for first, block in self._blocks(queries):
            tile, span = queries @ block.T, torch.tensor([first, first + len(block)])  # [B, n]
            low, high = torch.searchsorted(row, span).tolist()  # on the CPU, to avoid waiting for a device
            pairs = (sent(part[low:high], queries.device) for part in (query, row - first))
            tile[tuple(pairs)] = -torch.inf
            low, high = torch.searchsorted(self._left_out, span).tolist()
            tile[:, sent(self._left_out[low:high] - first, queries.device)] = -torch.inf
            found = tile.topk(min(count, len(block)), sorted=False)
            scores, rows = torch.cat([scores, found.values], 1), torch.cat([rows, found.indices + first], 1)
            scores, places = scores.topk(min(count, scores.shape[1]))
            rows = rows.gather(1, places)
        return rows.masked_fill(scores == -torch.inf, -1)

    def take(self, rows: Tensor) -> Tensor:
        """Vectors [n, D] float32 of these rows on the device of `rows`, ready to compare by inner product."""
        if self._resident is not None:
            return self._compared(self._resident[rows])
        return self._compared(torch.from_numpy(self.vectors.take(rows.cpu().numpy())).to(rows.device))

    def _false_negatives(self, relevant: Relevant) -> tuple[Tensor, Tensor]:
        """(query, row) of every document that has the text of a relevant one, which includes the relevant ones.

        Both are in main memory, by ascending row.
        """
        entry, row = pairs_in_order(relevant.hashes.cpu(), self._ordered, self._order)
        query = torch.searchsorted(relevant.offsets.cpu(), entry, right=True) - 1
        row, order = row.sort()
        return query[order], row

    def _blocks(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """All documents in blocks: the first row number and vectors [n, D] ready to compare by inner product."""
        if not self._settled:
            self._resident, self._settled = self._moved(queries.device), True
        size = max(256, min(_BLOCK_VALUES // self.vectors.dim, _BLOCK_SCORES // max(1, len(queries))))
        # the same blocks on every device: the last bits of a product depend on its shape
        for first, block in self.vectors.blocks(size):
            moved = self._resident
            own = as_tensor(block).to(queries.device) if moved is None else moved[first : first + len(block)]
            yield first, self._compared(own)

    def _moved(self, device: torch.device) -> Tensor | None:
        """All vectors as stored [N, D] on a CUDA device; None where they exceed half of its free memory."""
        vectors = self.vectors
        size = vectors.rows * vectors.dim * vectors.dtype.itemsize
        if device.type != "cuda":
            return None
        torch.cuda.empty_cache()  # memory that torch holds for later counts as free
        if size > torch.cuda.mem_get_info(device)[0] // 2:
            return None
        moved: Tensor | None = None
        for first, block in vectors.blocks(_BLOCK_VALUES // vectors.dim):
            part = as_tensor(block).to(device)
            moved = part.new_empty(vectors.rows, vectors.dim) if moved is None else moved
            moved[first : first + len(part)] = part
        return moved

    def _compared(self, vectors: Tensor) -> Tensor:
        """The vectors as float32, normalized where the similarity is cosine."""
        return functional.normalize(vectors.float(), dim=-1) if self._cosine else vectors.float()


class AdoreCollator(FinetuneCollator):
    """Makes a Batch with the named set `query` [B] alone; `ids` and `hashes` are those of the positives."""

    def __call__(self, items: Sequence[Example]) -> Batch:
        batch = super().__call__([item._replace(documents=item.documents[:0]) for item in items])
        return dataclasses.replace(batch, rows={"query": batch.rows["query"]})


class Adore(Finetune):
    """The weighted sum of losses of a rank's queries [B, D] against the top documents of the batch's queries.

    The candidates are the positive and the `dynamic_negatives` highest-ranked documents of every query of the global
    batch, by their fixed vectors. Documents that are relevant to a query, or have the text of one that is, are false
    negatives as in fine-tuning. The paper compares a query with its own highest-ranked documents alone, by LambdaLoss;
    `listwise` and `ranknet` do so too. `infonce` also uses the documents found for other queries, and so comes closer
    to a softmax over the whole corpus. Only the query backbone is trained; each rank searches for its own queries.
    """

    Config = AdoreConfig
    vector_names = ("query",)

    def __init__(self, config: AdoreConfig, encoder: Encoder, documents: FixedDocuments):
        super().__init__(config, encoder)
        self.depth, self.documents = config.found_per_query, documents
        encoder.backbone.requires_grad_(False)

    def collator(self) -> AdoreCollator:
        return AdoreCollator(self.encoder.pad_id)

    def _candidates(self, vectors: dict[str, Tensor], batch: Batch) -> CandidateBatch:
        """This rank's queries and the documents that all ranks found."""
        assert batch.relevant is not None, "fine-tuning needs the relevant documents of each query"
        queries, own = vectors["query"], batch.ids["document"]
        found = self.documents.best(queries.detach(), batch.relevant, self.depth)
        rows = torch.cat([own, found[found >= 0]])
        rows = gather_rows(rows, gather_counts(len(rows), rows.device)).unique()  # [P] ascending
        positives = torch.searchsorted(rows, own)
        hashes = self.documents.hashes[rows.cpu()].to(rows.device)
        false_negatives = identity_mask(batch.relevant, rows, hashes, positives)
        themselves = batch.relevant.themselves()
        itself = None if themselves is None else identity_mask(themselves, rows, hashes, positives)
        places = torch.searchsorted(rows, found).where(found >= 0, positives[:, None])  # [B, K]
        groups = torch.cat([positives[:, None], places], dim=1)
        return CandidateBatch(queries, self.documents.take(rows), positives, false_negatives, groups, itself=itself)
