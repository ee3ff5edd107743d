"""A tiny encoder, batches and a second objective, with the reference that the engine is held against."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.distributed.collectives import gather_counts, gather_rows, rank
from retrievo.models.chunks import pad
from retrievo.training.batch import Batch, Chunk, Relevant, Rows, Stats
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import FinetuneConfig

VOCABULARY, DIM, LONGEST = 50, 16, 12


class Tower(nn.Module):
    """Token ids to token vectors [n, L, D]."""

    def __init__(self, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Embedding(LONGEST, DIM)
        self.layer = nn.TransformerEncoderLayer(DIM, 2, 2 * DIM, dropout, batch_first=True)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        embedded = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        return self.layer(embedded, src_key_padding_mask=mask == 0)


class TinyEncoder(nn.Module):
    pad_id = 0
    spec = SimpleNamespace(similarity="dot", normalize=False)

    def __init__(self, tied: bool = True, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.document = Tower(dropout)
        self.query = self.document if tied else Tower(dropout)
        self.unused = nn.Linear(DIM, DIM)  # as BERT's pooler is

    def encode(self, role: str, input_ids: Tensor, mask: Tensor) -> Tensor:
        hidden = getattr(self, role)(input_ids, mask)
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class SpanPairs(Objective):
    """Rows 2i and 2i + 1 are partners; beside it each labeled token is predicted: vectors AND a local loss."""

    vector_names = ("span",)

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.encoder: Any = TinyEncoder(dropout=dropout)
        self.head = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Dropout(dropout))

    def encode(self, chunk: Chunk) -> tuple[Tensor, Any]:
        hidden = self.encoder.document(chunk.input_ids, chunk.attention_mask)
        return hidden[:, 0], (chunk.rows, hidden)

    def local_loss(self, rest: Any, batch: Batch) -> Tensor:
        rows, hidden = rest
        labels, mask = pad(batch.labels["span"].cpu(), batch.rows["span"].offsets, rows.cpu(), -100)
        labels = torch.from_numpy(np.where(mask, labels, -100)).to(hidden.device)
        logits = self.head(hidden[labels >= 0]) @ self.encoder.document.tokens.weight.T
        return functional.cross_entropy(logits, labels[labels >= 0], reduction="sum") / max(1, batch.counts["masked"])

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        spans = vectors["span"]
        counts = gather_counts(len(spans), spans.device)
        own = sum(counts[: rank()]) + torch.arange(len(spans), device=spans.device)
        scores = spans @ gather_rows(spans, counts).T
        scores = scores.scatter(1, own[:, None], float("-inf"))
        loss = functional.cross_entropy(scores, own ^ 1, reduction="sum") / batch.counts["spans"]
        return loss, {"pairs_loss": loss.detach()}


def finetune(tied: bool = True, dropout: float = 0.0, **options: Any) -> Finetune:
    return Finetune(FinetuneConfig(**options), TinyEncoder(tied, dropout))


def rows(lengths: list[int], random: np.random.Generator) -> Rows:
    tokens = random.integers(1, VOCABULARY, sum(lengths))
    return Rows(torch.from_numpy(tokens), torch.tensor([0, *np.cumsum(lengths)]))


def finetune_batch(groups: list[int], seed: int = 0, of: slice = slice(None)) -> Batch:
    """A batch of `len(groups)` queries with that many documents each; `of` cuts the part of one rank.

    The documents are drawn from few, so that duplicates and in-batch positives occur.
    """
    random = np.random.default_rng(seed)
    queries = rows(list(random.integers(1, LONGEST + 1, len(groups))), random)
    corpus = rows(list(random.integers(1, LONGEST + 1, 30)), random)
    drawn = [random.choice(30, size, replace=False) for size in groups]
    mine = drawn[of]
    ids = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *mine]))
    return Batch(
        rows={"query": select(queries, range(len(groups))[of]), "document": select(corpus, ids.tolist())},
        counts={"pairs": len(mine)},
        ids={"document": ids},
        hashes={"document": ids % 25},  # documents 25 ... 29 read as 0 ... 4
        groups=torch.tensor([len(documents) for documents in mine], dtype=torch.int64),
        relevant=Relevant(
            torch.tensor([documents[0] for documents in mine], dtype=torch.int64),
            torch.tensor([documents[0] % 25 for documents in mine], dtype=torch.int64),
            torch.arange(len(mine) + 1),
        ),
    )


def taught_by_vectors(batch: Batch, seed: int, of: slice, queries: int) -> Batch:
    """The same with vectors of another model: of all `queries` of the global batch, of which this rank has `of`."""
    random = np.random.default_rng(seed)
    drawn, corpus = (torch.from_numpy(random.standard_normal((n, 3)).astype(np.float32)) for n in (queries, 30))
    vectors = {"query": drawn[of], "document": corpus[batch.ids["document"]]}
    return dataclasses.replace(batch, teacher_vectors=vectors)


def span_batch(spans: int, seed: int = 0, of: slice = slice(None)) -> Batch:
    random = np.random.default_rng(seed)
    every = rows(list(random.integers(2, LONGEST + 1, spans)), random)
    chosen = random.random(every.tokens.numel()) < 0.3
    labels = Rows(torch.where(torch.from_numpy(chosen), every.tokens, -100), every.offsets)
    mine = range(spans)[of]
    part = select(labels, mine).tokens
    counts = {"pairs": len(mine) // 2, "spans": len(mine), "masked": int((part >= 0).sum())}
    return Batch(rows={"span": select(every, mine)}, counts=counts, labels={"span": part})


def select(source: Rows, chosen: Any) -> Rows:
    parts = [source.tokens[source.offsets[row] : source.offsets[row + 1]] for row in chosen]
    return Rows(torch.cat([source.tokens[:0], *parts]), torch.tensor([0, *(len(part) for part in parts)]).cumsum(0))


def reference_gradient(objective: Objective, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one padded batch in one graph: neither chunks nor cache."""
    objective.zero_grad(set_to_none=True)
    device = next(objective.parameters()).device
    moved = batch.to(device)
    vectors, total = {}, torch.zeros((), device=device)
    for name, named in batch.rows.items():
        everything = np.arange(named.size)
        ids, mask = (torch.from_numpy(array).to(device) for array in pad(*named, everything, 0))
        vectors[name], rest = objective.encode(Chunk(name, torch.from_numpy(everything).to(device), ids, mask))
        total = total + objective.local_loss(rest, moved)
    total = total + objective.contrast(vectors, moved)[0]
    total.backward()
    return total.item(), gradients(objective)


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
