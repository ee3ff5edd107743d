"""Pre-training by contrast alone: two views of a document are to be each other's nearest in the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retrievo.data.sampling import random_keys
from retrievo.learning.batch import Batch, Chunk, Stats
from retrievo.learning.distributed import gather_counts, gather_rows, rank, world_size
from retrievo.models.encoder import Encoder, position_limit
from retrievo.objectives.choices import SimClrConfig, ViewsConfig
from retrievo.objectives.framing import Document, Frame, frame, framed
from retrievo.objectives.objective import Objective
from retrievo.objectives.views import LEAST_SPAN, cut_crops, cut_windows, gather
from retrievo.support.errors import RetrievoError

QUERY, DOCUMENT = "query", "document"  # the named sets: a view in the role of a query, another in that of its key
_WINDOW, _CROP = range(2)  # one stream of random numbers for each purpose
_TILE = 1 << 21  # scores worked out at once (8 MiB), so that memory does not grow with the square of the batch
_SAMPLE = 512  # vectors that uniformity and spread are worked out on


@dataclass(frozen=True)
class CropCollator:
    """Documents into a Batch of two independent crops of one window each; a pure function of tokens and keys.

    window:            most tokens of a window, which lies in one document.
    shortest, longest: shares of the window that a crop may have.
    frames:            what stands around a crop in each role.
    Counts: `documents`.
    """

    window: int
    shortest: float
    longest: float
    frames: dict[str, Frame]
    pad_id: int

    spans = 2
    least_tokens = 2 * LEAST_SPAN  # shorter ones would give twice the same view

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of a crop, on average, of documents of so many tokens [n]."""
        windows = np.minimum(lengths, self.window)
        return np.maximum((self.shortest + self.longest) / 2 * windows, LEAST_SPAN)

    def __call__(self, items: Sequence[Document]) -> Batch:
        keys = np.array([item.key for item in items], np.uint64)
        texts = [item.tokens for item in items]
        lengths = np.array([len(text) for text in texts], np.int64)
        windows = cut_windows(lengths, self.window, random_keys(_WINDOW, keys))
        rows = {}
        for view, (role, around) in enumerate(self.frames.items()):
            own_keys = random_keys(_CROP, keys, np.full(len(items), view))
            rows[role] = framed(*gather(texts, cut_crops(windows, self.shortest, self.longest, own_keys)), around)
        return Batch(rows=rows, counts={"documents": len(items)}, pad_ids=dict.fromkeys(rows, self.pad_id))


class SimClr(Objective):
    """InfoNCE of one crop of a document against another of the same, among those of the whole global batch.

    -log exp(<q, k+> / T) / sum over all k of exp(<q, k> / T), the mean over q (Contriever, Izacard et al. 2021, section
    3.1; SimCLR, Chen et al. 2020): queries against keys, as Contriever's code has it. With `symmetric` each crop
    competes with all 2n - 1 others (SimCLR's NT-Xent). Both crops go through the encoder, the gradient through both.

    Raises: RetrievoError where a crop is longer than the backbone has positions for.
    """

    Config = SimClrConfig
    config: ViewsConfig
    vector_names = (QUERY, DOCUMENT)

    def __init__(self, config: ViewsConfig, encoder: Encoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.frames = {role: frame(encoder.tokenization(role)) for role in (QUERY, DOCUMENT)}
        self._check_length(max(config.crop_longest * config.window, LEAST_SPAN))

    @property
    def symmetric(self) -> bool:
        """Whether each view competes with all others, and not only queries with keys."""
        return isinstance(self.config, SimClrConfig) and self.config.symmetric

    def _check_length(self, longest: float) -> None:
        """Raises RetrievoError where a view of so many tokens does not fit."""
        most = position_limit(self.encoder.backbone)
        needed = round(longest) + max(around.size for around in self.frames.values())
        if most is not None and needed > most:
            found = f"views of up to {needed} tokens, special tokens included"
            raise RetrievoError("--window", found, f"at most {most} for this backbone")

    def collator(self) -> Any:
        config = self.config
        return CropCollator(config.window, config.crop_shortest, config.crop_longest, self.frames, self.encoder.pad_id)

    def encode(self, chunk: Chunk) -> tuple[Tensor, Any]:
        vectors = self.encoder.encode(chunk.name, chunk.input_ids, chunk.attention_mask)
        return functional.normalize(vectors, dim=-1) if self.encoder.spec.similarity == "cosine" else vectors, None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        queries, keys = vectors[QUERY], vectors[DOCUMENT]  # [B, D], [B, D]
        if self.symmetric:
            queries = keys = torch.stack([queries, keys], dim=1).flatten(0, 1)  # rows 2i and 2i + 1 belong together
        counts = gather_counts(len(keys), keys.device)
        every = gather_rows(keys, counts)  # [P, D]
        own = sum(counts[: rank()]) + torch.arange(len(queries), device=queries.device)
        positives, excluded = (own ^ 1, own) if self.symmetric else (own, None)
        queries = queries / self.config.temperature
        total, hits = InfoNce.apply(queries, every, positives, excluded)
        if self.config.label_smoothing:
            total = total + self.config.label_smoothing * smoothing(queries, every, positives, excluded)
        loss = total / sum(counts)
        stats = {"contrastive_loss": loss.detach(), "accuracy": hits / sum(counts)}
        of_documents = every[1::2] if self.symmetric else every
        return loss, stats | figures(vectors[QUERY], vectors[DOCUMENT], of_documents, batch.counts["documents"])


def smoothing(queries: Tensor, every: Tensor, positives: Tensor, excluded: Tensor | None) -> Tensor:
    """What spreading the target over all candidates adds to a sum of -log softmax: own score - mean score, summed.

    (1 - e) (Z - s+) + e mean(Z - s) = (Z - s+) + e (s+ - mean(s)), where Z is the log of the sum.
    """
    total, candidates = every.sum(0), len(every)
    if excluded is not None:
        total, candidates = total - every[excluded], candidates - 1
    return (queries * (every[positives] - total / max(1, candidates))).sum()


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
        "alignment": distances.sum() / pairs,
        "uniformity": (potential.sum() / count).clamp(min=math.exp(-8)).log() / world_size(),
        "vector_std": spread / world_size(),
    }


class InfoNce(torch.autograd.Function):
    """The sum of -log softmax of each row's positive among all rows of `every`, and how often the positive wins.

    rows [m, D], every [M, D]; positives [m]: columns; excluded [m] or None: a column that does not compete. The
    gradient, softmax - positive, is worked out beside the loss, tile by tile: neither time nor memory for the scores a
    second time.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, every: Tensor, positives: Tensor, excluded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        loss, hits = rows.new_zeros(()), rows.new_zeros(())
        gradient, of_every = torch.zeros_like(rows), torch.zeros_like(every)
        tile = max(1, _TILE // max(1, len(every)))
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            own, positive = rows[part], positives[part, None]
            scores = own @ every.T  # [t, M]
            if excluded is not None:
                scores.scatter_(1, excluded[part, None], float("-inf"))
            hits += (scores.argmax(1, keepdim=True) == positive).sum()
            total = scores.logsumexp(1, keepdim=True)
            loss += (total - scores.gather(1, positive)).sum()
            slope = scores.sub_(total).exp_()
            slope.scatter_add_(1, positive, slope.new_full(positive.shape, -1.0))
            torch.mm(slope, every, out=gradient[part])
            of_every.addmm_(slope.T, own)
        ctx.save_for_backward(gradient, of_every)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient, of_every = ctx.saved_tensors
        return upstream * gradient, upstream * of_every, None, None
