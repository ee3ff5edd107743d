"""Pre-training by contrast alone: two views of a document are to be each other's nearest in the batch."""

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
from retrievo.training.losses.tiled import weighed
from retrievo.training.objectives.objective import CONTESTED, Objective, encoded
from retrievo.training.objectives.table import IctConfig, SimClrConfig, ViewsConfig

QUERY, DOCUMENT = ROLES  # the named sets: a view in the role of a query, another in that of its key
_WINDOW, _CROP, _KEEP, _CORRUPT = range(4)  # one stream of random numbers for each purpose
_SAMPLE = 512  # vectors that uniformity and spread are worked out on
Flat = tuple[np.ndarray, np.ndarray]  # tokens [T] and offsets [n + 1]


@dataclass(frozen=True)
class CropCollator:
    """Documents into a Batch of two views of one window each; a pure function of tokens and keys.

    window:            most tokens of a window, which lies in one document.
    shortest, longest: shares of the window that a crop may have.
    frames:            what stands around a view in each role, in the order in which the engine takes them.
    Counts: `documents`.
    """

    window: int
    shortest: float
    longest: float
    corruption: Corruption
    frames: dict[str, Frame]
    pad_id: int

    spans = 2
    least_tokens = 2 * LEAST_SPAN  # shorter ones would give twice the same view

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of a view, on average, of documents of so many tokens [n]."""
        low, high = crop_lengths(np.minimum(lengths, self.window), self.shortest, self.longest)
        return (low + high) / 2 * (1 - self.corruption.delete)

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
    """A span of the window is the query, the rest of the window its document (inverse cloze task, Lee et al. 2019).

    keep_query: share of the documents that keep the span, so that matching words counts too (Lee et al., section 4).
    """

    keep_query: float

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Half the window: the span and the rest, of which a part keeps the span."""
        windows, span = np.minimum(lengths, self.window), super().expected_lengths(lengths)
        left = 1 - self.corruption.delete
        return (left * windows + self.keep_query * span) / 2

    def views(self, texts: Sequence[np.ndarray], windows: Spans, keys: np.ndarray) -> dict[str, Flat]:
        spans = cut_query(windows, self.shortest, self.longest, random_keys(_CROP, keys))
        whole, offsets = gather(texts, windows)
        kept = uniform(random_keys(_KEEP, keys)) < self.keep_query
        gone = inside(offsets, (spans.starts - windows.starts)[:, 0], np.where(kept, 0, spans.lengths))
        return {QUERY: gather(texts, spans), DOCUMENT: without(whole, offsets, gone)}


class InBatchContrast(Objective):
    """InfoNCE of one view of a document against another view of it, among those of the whole global batch.

    -log exp(<q, k+> / T) / sum over all k of exp(<q, k> / T), the mean over q: queries against keys (Contriever,
    Izacard et al. 2021, section 3.1). Both views go through the encoder, and the gradient through both.

    Raises: RetrievoError where a view is longer than the backbone has positions for, or where tokens are to be replaced
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
        """Most tokens of a view, without its frame."""
        return max(round(self.config.crop_longest * self.config.window), LEAST_SPAN)

    @property
    def symmetric(self) -> bool:
        """Whether each view competes with all others, and not only queries with keys."""
        return False

    def collator(self) -> CropCollator:
        return self.Collator(*self._of_collator())

    def _of_collator(self) -> tuple[int, float, float, Corruption, dict[str, Frame], int]:
        told = self.config
        shares = told.crop_shortest, told.crop_longest
        return told.window, *shares, self.corruption, self.frames, self.encoder.pad_id

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Any]:
        return encoded(self.encoder, chunk), None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        queries, keys = vectors[QUERY], vectors[DOCUMENT]  # [B, D], [B, D]
        if self.symmetric:
            queries = keys = torch.stack([queries, keys], dim=1).flatten(0, 1)  # rows 2i and 2i + 1 belong together
        told = self.config
        return among_all(queries, keys, told.temperature, told.label_smoothing, paired=self.symmetric)


class SimClr(InBatchContrast):
    """Two independent crops of each document: one direction as in Contriever's code, or NT-Xent with `symmetric`.

    NT-Xent: each crop against all 2n - 1 others (SimCLR, Chen et al. 2020, eq. 1).
    """

    Config = SimClrConfig
    config: SimClrConfig

    @property
    def symmetric(self) -> bool:
        return self.config.symmetric


class InverseCloze(InBatchContrast):
    """A span of each document against the rest of it (inverse cloze task; Lee et al. 2019, section 4)."""

    Config = IctConfig
    config: IctConfig

    @property
    def longest_view(self) -> int:
        return self.config.window

    def collator(self) -> ClozeCollator:
        return ClozeCollator(*self._of_collator(), self.config.keep_query)


def among_all(
    rows: Tensor, keys: Tensor, temperature: float = 1.0, label_smoothing: float = 0.0, *, paired: bool
) -> tuple[Tensor, Stats]:
    """InfoNCE of each row with its key among the keys of all ranks, the mean over the rows of all ranks, and figures.

    rows, keys: of this rank [m, D]. paired: the keys are the rows themselves; 2i and 2i + 1 belong together, and no
    row competes with itself.
    """
    counts = gather_counts(len(keys), keys.device)
    every, total = gather_rows(keys, counts), sum(counts)  # [M, D]
    place = torch.arange(len(rows), device=rows.device)
    own = sum(counts[: rank()]) + place
    itself = torch.stack([place, own])[:, : len(place) if paired else 0]
    contest = CandidateBatch(rows, every, own ^ 1 if paired else own, masked=itself)
    outcome = weighed(contest, {"infonce": 1.0}, temperature, LossSettings(label_smoothing))
    loss = outcome.total / total
    stats = {"contrastive_loss": loss.detach(), "accuracy": outcome.correct / total}
    stats[f"contrastive{CONTESTED}"] = outcome.contested["infonce"] / total
    if paired:
        rows, keys, every, total = rows[::2], rows[1::2], every[1::2], total // 2
    return loss, stats | figures(rows, keys, every, total)


@torch.no_grad()
def figures(queries: Tensor, keys: Tensor, every: Tensor, pairs: int) -> Stats:
    """How vectors of unit length lie: shares of this rank, as losses.

    alignment:  mean squared distance of the two views of a document; uniformity: log of the mean of exp(-2 d^2) over
    pairs of documents (Wang & Isola 2020, eq. 1 and 2).
    vector_std: root of the summed variance over documents; 1 = in all directions alike, 0 = all the same (collapse).
    queries, keys: of this rank [B, D]; every: keys of all ranks [P, D], of which the first `_SAMPLE` are looked at.
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
