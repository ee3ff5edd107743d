"""Contrastive pre-training: each view of a document scores its other view above the views of other documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retrievo.data.sampling import random_keys, uniform
from retrievo.distributed.collectives import gather_counts, gather_rows, rank, world_size
from retrievo.models.encoder import Encoder, position_limit
from retrievo.models.encoder_spec import ROLES
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.corruption import Corruption
from retrievo.training.augment.masking import Vocabulary
from retrievo.training.augment.spans import (
    LEAST_SPAN,
    Spans,
    crop_lengths,
    cut_crops,
    cut_query,
    cut_windows,
    gather,
    inside,
    without,
)
from retrievo.training.augment.special_tokens import Document, Frame, frame, framed
from retrievo.training.batch import Batch, Chunk, Stats
from retrievo.training.losses.losses import CandidateBatch, LossSettings
from retrievo.training.losses.tiled import contrastive_loss
from retrievo.training.objectives.objective import WITH_NEGATIVE, Objective, encoded
from retrievo.training.objectives.table import IctConfig, SimClrConfig, ViewsConfig

QUERY, DOCUMENT = ROLES  # the named sets: one view serves as the query, the other as its key
_WINDOW, _CROP, _KEEP, _CORRUPT = range(4)  # one stream of random numbers for each purpose
_SAMPLE = 512  # vectors from which uniformity and vector_std are estimated
Flat = tuple[np.ndarray, np.ndarray]  # tokens [T] and offsets [n + 1]


@dataclass(frozen=True)
class CropCollator:
    """Makes a Batch of two views of one window of each document; a pure function of tokens and keys.

    window:            maximal number of tokens of a window, which lies within one document.
    shortest, longest: minimal and maximal length of a crop, as a share of the window.
    frames:            the special tokens around a view in each role, in the order in which the engine encodes the
    roles. The only count is `documents`.
    """

    window: int
    shortest: float
    longest: float
    corruption: Corruption
    frames: dict[str, Frame]
    pad_id: int

    spans = 2
    least_tokens = 2 * LEAST_SPAN  # a shorter document would give the same view twice

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """The average number of tokens of a view, for documents of these lengths [n]."""
        low, high = crop_lengths(np.minimum(lengths, self.window), self.shortest, self.longest)
        average: np.ndarray = (low + high) / 2 * (1 - self.corruption.delete)
        return average

    def __call__(self, items: Sequence[Document]) -> Batch:
        keys = np.array([item.key for item in items], np.uint64)
        texts = [item.tokens for item in items]
        lengths = np.array([len(text) for text in texts], np.int64)
        views = self.views(texts, cut_windows(lengths, self.window, random_keys(_WINDOW, keys)), keys)
        rows = {}
        for role, around in self.frames.items():
            own_keys = random_keys(_CORRUPT, keys, np.full(len(items), ROLES.index(role)))
            rows[role] = framed(*self.corruption(*views[role], own_keys), around)
        return Batch(rows=rows, counts={"documents": len(items)}, pad_ids=dict.fromkeys(rows, self.pad_id))

    def views(self, texts: Sequence[np.ndarray], windows: Spans, keys: np.ndarray) -> dict[str, Flat]:
        """Two independent crops of each window, as flat tokens and offsets by role."""
        drawn = {role: random_keys(_CROP, keys, np.full(len(keys), number)) for number, role in enumerate(ROLES)}
        return {role: gather(texts, cut_crops(windows, self.shortest, self.longest, drawn[role])) for role in ROLES}


@dataclass(frozen=True)
class ClozeCollator(CropCollator):
    """Makes a span of the window the query and the rest of the window its key (inverse cloze task, Lee et al. 2019).

    keep_query: share of the documents that keep the span, so that matching words count too (Lee et al., section 4).
    """

    keep_query: float

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """The average of the span's and the rest's number of tokens; `keep_query` of the rests include the span."""
        windows, span = np.minimum(lengths, self.window), super().expected_lengths(lengths)
        left = 1 - self.corruption.delete
        average: np.ndarray = (left * windows + self.keep_query * span) / 2
        return average

    def views(self, texts: Sequence[np.ndarray], windows: Spans, keys: np.ndarray) -> dict[str, Flat]:
        spans = cut_query(windows, self.shortest, self.longest, random_keys(_CROP, keys))
        whole, offsets = gather(texts, windows)
        kept = uniform(random_keys(_KEEP, keys)) < self.keep_query
        gone = inside(offsets, (spans.starts - windows.starts)[:, 0], np.where(kept, 0, spans.lengths))
        return {QUERY: gather(texts, spans), DOCUMENT: without(whole, offsets, gone)}


class InBatchContrast(Objective):
    """InfoNCE of one view of a document with another view of it, among the views of the global batch.

    The loss is the mean over queries q of -log exp(<q, k+> / T) / sum over all keys k of exp(<q, k> / T) (Contriever,
    Izacard et al. 2021, section 3.1). Both views are encoded by the same model and both get a gradient.

    Raises: RetrievoError where a view may exceed the positions of the backbone, or where tokens are replaced or masked
    and the tokenizer has no mask token.
    """

    config: ViewsConfig
    vector_names: ClassVar[tuple[str, ...]] = (QUERY, DOCUMENT)
    roles: ClassVar[tuple[str, ...]] = ROLES  # in the order of the batch
    Collator: ClassVar[type[CropCollator]] = CropCollator  # what cuts the views

    def __init__(self, config: ViewsConfig, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.frames = {role: frame(encoder.tokenization(role)) for role in self.roles}
        changes = config.replace or config.mask
        vocabulary = Vocabulary.of(encoder.tokenizer, whole_word=False) if changes else None
        self.corruption = Corruption(config.delete, config.replace, config.mask, vocabulary)
        self._check_length()

    def _check_length(self) -> None:
        most = position_limit(self.encoder.backbone)
        needed = self.longest_view + max(around.size for around in self.frames.values())
        if most is not None and needed > most:
            found = f"views of up to {needed} tokens, special tokens included"
            raise RetrievoError("--window", found, f"at most {most} for this backbone")

    @property
    def longest_view(self) -> int:
        """Maximal number of tokens of a view, without its frame."""
        return max(round(self.config.crop_longest * self.config.window), LEAST_SPAN)

    @property
    def symmetric(self) -> bool:
        """Whether each view is compared with all other views, and not only queries with keys."""
        return False

    def collator(self) -> CropCollator:
        return self.Collator(*self._collator_fields())

    def _collator_fields(self) -> tuple[int, float, float, Corruption, dict[str, Frame], int]:
        config = self.config
        shares = config.crop_shortest, config.crop_longest
        return config.window, *shares, self.corruption, self.frames, self.encoder.pad_id

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
        return encoded(self.encoder, chunk), None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        queries, keys = vectors[QUERY], vectors[DOCUMENT]  # [B, D], [B, D]
        if self.symmetric:
            # rows 2i and 2i + 1 are views of one document
            queries = keys = torch.stack([queries, keys], dim=1).flatten(0, 1)
        config = self.config
        return contrast_among_ranks(queries, keys, config.temperature, config.label_smoothing, paired=self.symmetric)


class SimClr(InBatchContrast):
    """Contrast of two independent crops of each document: queries against keys, or NT-Xent with `symmetric`.

    Queries against keys is the form of Contriever's code. NT-Xent compares each crop with all 2n - 1 others (SimCLR,
    Chen et al. 2020, eq. 1).
    """

    Config = SimClrConfig
    config: SimClrConfig

    @property
    def symmetric(self) -> bool:
        return self.config.symmetric


class InverseCloze(InBatchContrast):
    """Contrast of a span of each document with the rest of it (inverse cloze task; Lee et al. 2019, section 4)."""

    Config = IctConfig
    config: IctConfig

    @property
    def longest_view(self) -> int:
        return self.config.window

    def collator(self) -> ClozeCollator:
        return ClozeCollator(*self._collator_fields(), self.config.keep_query)


def contrast_among_ranks(
    rows: Tensor, keys: Tensor, temperature: float = 1.0, label_smoothing: float = 0.0, *, paired: bool
) -> tuple[Tensor, Stats]:
    """InfoNCE of each row with its key among the keys of all ranks, as a mean over the rows of all ranks, and metrics.

    rows, keys: vectors of this rank [m, D]. paired: the keys are the rows themselves; rows 2i and 2i + 1 are each
    other's positives, and no row is compared with itself.
    """
    counts = gather_counts(len(keys), keys.device)
    every, total = gather_rows(keys, counts), sum(counts)  # [M, D]
    place = torch.arange(len(rows), device=rows.device)
    own = sum(counts[: rank()]) + place
    itself = torch.stack([place, own])[:, : len(place) if paired else 0]
    candidates = CandidateBatch(rows, every, own ^ 1 if paired else own, false_negatives=itself)
    outcome = contrastive_loss(candidates, {"infonce": 1.0}, temperature, LossSettings(label_smoothing))
    loss = outcome.total / total
    stats = {"contrastive_loss": loss.detach(), "accuracy": outcome.correct / total}
    stats[f"contrastive{WITH_NEGATIVE}"] = outcome.with_negative["infonce"] / total
    if paired:
        rows, keys, every, total = rows[::2], rows[1::2], every[1::2], total // 2
    return loss, stats | vector_metrics(rows, keys, every, total)


@torch.no_grad()
def vector_metrics(queries: Tensor, keys: Tensor, every: Tensor, pairs: int) -> Stats:
    """How the normalized vectors are distributed; like losses, the values are this rank's shares of a sum over ranks.

    alignment:  mean squared distance between the two views of a document; uniformity: log of the mean of exp(-2 d^2)
    over pairs of documents (Wang & Isola 2020, eq. 1 and 2).
    vector_std: square root of the summed variance over documents; 1 = evenly spread over all directions, 0 = all
    vectors equal (collapse).
    queries, keys: vectors of this rank [B, D]; every: keys of all ranks [P, D], of which the first `_SAMPLE` are used.
    """
    distances = (functional.normalize(queries, dim=-1) - functional.normalize(keys, dim=-1)).square().sum(-1)
    unit = functional.normalize(every[:_SAMPLE], dim=-1)
    scores = unit @ unit.T
    potential = torch.exp(4 * scores - 4).fill_diagonal_(0)  # d^2 = 2 - 2 cos
    count = max(1, len(unit) * (len(unit) - 1))
    spread = (1 - unit.mean(0).square().sum()).clamp(min=0).sqrt()
    return {
        "alignment": distances.sum() / max(1, pairs),
        "uniformity": (potential.sum() / count).clamp(min=math.exp(-8)).log() / world_size(),
        "vector_std": spread / world_size(),
    }
