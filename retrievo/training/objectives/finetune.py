"""Fine-tuning: each query against its positive, its own negatives and all other documents of the global batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.distributed.collectives import gather_counts, gather_rows, rank
from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Batch, Chunk, Relevant, Rows, Stats, flat
from retrievo.training.losses.losses import CandidateBatch, LossSettings, identity_mask
from retrievo.training.losses.tiled import Outcome, contrastive_loss
from retrievo.training.objectives.objective import WITH_NEGATIVE, Objective, encoded
from retrievo.training.objectives.table import FinetuneConfig

_COSINE_TEMPERATURE = 0.05  # a softmax over values in [-1, 1] is nearly uniform (SimCLR, table 5)


class Example(NamedTuple):
    """A query with its group of documents, the positive first, as token ids and identities."""

    query: np.ndarray  # [L]
    documents: Sequence[np.ndarray]  # [G] of [L]
    document_ids: np.ndarray  # [G] row numbers in the corpus
    document_hashes: np.ndarray  # [G] text identities
    relevant_ids: np.ndarray  # [r] all relevant documents of the query, then the documents that are the query itself
    relevant_hashes: np.ndarray  # [r]
    teacher: np.ndarray | None = None  # [G] a teacher's scores of the documents, NaN where a score is missing
    themselves: int = 0  # how many entries at the end of `relevant_ids` are the query itself


@dataclass(frozen=True)
class FinetuneCollator:
    """Makes a Batch with the named sets `query` [B] and `document` (the groups one after the other) from examples."""

    pad_id: int

    def __call__(self, items: Sequence[Example]) -> Batch:
        relevant = Relevant(
            ids=flat([item.relevant_ids for item in items]),
            hashes=flat([item.relevant_hashes for item in items]),
            offsets=torch.tensor([0, *(len(item.relevant_ids) for item in items)]).cumsum(0),
            itself=flat([_at_the_end(len(item.relevant_ids), item.themselves) for item in items]).bool(),
        )
        documents = [document for item in items for document in item.documents]
        return Batch(
            rows={"query": Rows.of([item.query for item in items]), "document": Rows.of(documents)},
            counts={"pairs": len(items)},
            pad_ids={"query": self.pad_id, "document": self.pad_id},
            ids={"document": flat([item.document_ids for item in items])},
            hashes={"document": flat([item.document_hashes for item in items])},
            groups=torch.tensor([len(item.documents) for item in items], dtype=torch.int64),
            relevant=relevant,
            teacher=_scores([item.teacher for item in items if item.teacher is not None]),
        )


def _at_the_end(length: int, count: int) -> np.ndarray:
    """Marks the last `count` of `length` positions [length]."""
    return np.arange(length) >= length - count


def _scores(arrays: Sequence[np.ndarray]) -> Tensor | None:
    return torch.from_numpy(np.concatenate(arrays).astype(np.float32)) if arrays else None


class Finetune(Objective):
    """The weighted sum of losses of a rank's queries [B, D] against the documents of all ranks [P, D].

    The loss is the mean over the queries of the global batch; each rank returns its share of it, and the shares add up
    (coCondenser, eq. 14; DPR, eq. 2). With `matryoshka` it is averaged over vectors truncated to each dimension and
    untruncated vectors (Kusupati et al. 2022, eq. 1, with equal weights), so that no exported dimension is untrained.
    Raises: RetrievoError for --matryoshka dimensions above the dimension of the model.
    """

    Config = FinetuneConfig
    vector_names: ClassVar[tuple[str, ...]] = ("query", "document")

    def __init__(self, config: FinetuneConfig, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        if config.matryoshka and max(config.matryoshka) > encoder.dim:
            found = f"found {max(config.matryoshka)}"
            raise RetrievoError("--matryoshka", found, f"at most {encoder.dim}, the dimension of the model's vectors")
        self.dims = (*config.matryoshka, *({encoder.dim} - set(config.matryoshka))) if config.matryoshka else ()
        self.settings = LossSettings(
            **{known.name: getattr(config, known.name) for known in dataclasses.fields(LossSettings)}
        )
        self._cosines = encoder.spec.similarity == "cosine" or encoder.spec.normalize
        self._temperature = config.temperature or (_COSINE_TEMPERATURE if self._cosines else 1.0)
        start = torch.tensor(math.log(self._temperature))
        self.log_temperature = nn.Parameter(start) if config.learn_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        """Divides the scores. A learned temperature is kept as its logarithm, so that it stays above 0."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def collator(self) -> FinetuneCollator:
        return FinetuneCollator(self.encoder.pad_id)

    def encode(self, chunk: Chunk) -> tuple[Tensor, None]:
        return encoded(self.encoder, chunk), None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        candidates = self._candidates(vectors, batch)
        outcomes = [self._outcome(self._normalized(candidates.truncated(dim))) for dim in self.dims]
        outcomes = outcomes or [self._outcome(candidates)]
        pairs = batch.counts["pairs"] * len(outcomes)
        losses = {name: torch.stack([outcome.losses[name] for outcome in outcomes]) for name in self.config.loss}
        stats = {name: values.sum() / pairs for name, values in losses.items()}
        stats["accuracy"] = outcomes[0].correct / batch.counts["pairs"]  # at the first of the dimensions
        with_negative = outcomes[0].with_negative.items()
        stats |= {f"{name}{WITH_NEGATIVE}": count / batch.counts["pairs"] for name, count in with_negative}
        return torch.stack([outcome.total for outcome in outcomes]).sum() / pairs, stats

    def _outcome(self, candidates: CandidateBatch) -> Outcome:
        weights = dict(zip(self.config.loss, self.config.loss_weight, strict=True))
        return contrastive_loss(candidates, weights, self.temperature, self.settings)

    def _normalized(self, candidates: CandidateBatch) -> CandidateBatch:
        """Scales truncated vectors back to unit length where the encoder's vectors have unit length."""
        if not self._cosines:
            return candidates
        queries, documents = (functional.normalize(side, dim=-1) for side in (candidates.queries, candidates.documents))
        return dataclasses.replace(candidates, queries=queries, documents=documents)

    def _candidates(self, vectors: dict[str, Tensor], batch: Batch) -> CandidateBatch:
        """This rank's queries among the documents of all ranks."""
        queries, documents = vectors["query"], vectors["document"]
        counts = gather_counts(len(documents), documents.device)
        starts = batch.groups.cumsum(0) - batch.groups  # [B] each query's first document on this rank
        first = sum(counts[: rank()])  # column of this rank's first document
        identities = torch.stack([batch.ids["document"], batch.hashes["document"]], dim=1)
        ids, hashes = (column.contiguous() for column in gather_rows(identities, counts).unbind(1))  # [P], [P]
        assert batch.relevant is not None, "fine-tuning needs the relevant documents of each query"
        positives = first + starts
        themselves = batch.relevant.themselves()
        own, inside = _own(batch.groups, starts)
        teacher = None if batch.teacher is None else batch.teacher[own].where(inside, float("nan"))
        teacher_vectors = batch.teacher_vectors
        return CandidateBatch(
            queries=queries,
            documents=gather_rows(documents, counts),
            positives=positives,
            false_negatives=identity_mask(batch.relevant, ids, hashes, positives),
            own=first + own,
            teacher=teacher,
            teacher_queries=teacher_vectors.get("query"),
            teacher_documents=gather_rows(teacher_vectors["document"], counts) if teacher_vectors else None,
            itself=None if themselves is None else identity_mask(themselves, ids, hashes, positives),
        )


def _own(groups: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of each query's own documents on this rank, padded with its positive; whether each is real: [B, G] each."""
    place = torch.arange(max([1, *groups.tolist()]), device=starts.device)
    inside = place < groups[:, None]
    return starts[:, None] + place.where(inside, 0), inside
