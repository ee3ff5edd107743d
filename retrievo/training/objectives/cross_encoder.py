"""Objectives of cross-encoders: a query's relevant document against its negatives, or each pair on its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from retrievo.models.cross_encoder import CrossEncoder
from retrievo.training.batch import Batch, Chunk, Stats
from retrievo.training.feeds.pairs import PAIR, PairCollator
from retrievo.training.objectives.objective import WITH_NEGATIVE, Objective
from retrievo.training.objectives.table import CrossEncoderConfig


class GroupCrossEncoder(Objective):
    """-log softmax(s(q, .)) at the positive, over the documents of one query's group (Gao, Dai & Callan 2021, eq. 4).

    The softmax needs all scores of a group, whose pairs are in different chunks since they differ in length. The scores
    are therefore this objective's vectors [n, 1], and the gradient cache keeps the gradient exact. Where all graphs fit
    --activation-memory, no pair is encoded twice.
    """

    Config = CrossEncoderConfig
    vector_names = (PAIR,)

    def __init__(self, config: CrossEncoderConfig, model: CrossEncoder):
        super().__init__()
        self.config, self.model = config, model

    def collator(self) -> PairCollator:
        return PairCollator(self.model.pad_id)

    def encode(self, chunk: Chunk) -> tuple[Tensor, None]:
        return self.model(chunk.input_ids, chunk.attention_mask)[:, None], None

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        groups = vectors[PAIR][:, 0].split(batch.groups.tolist())
        if not groups:  # a rank without rows
            zero = vectors[PAIR].sum()
            return zero, {"accuracy": zero.detach(), f"group{WITH_NEGATIVE}": zero.detach()}
        scores = pad_sequence(list(groups), batch_first=True, padding_value=float("-inf"))  # [B, G]
        losses = scores.logsumexp(1) - scores[:, 0]
        best_other = functional.pad(scores.detach()[:, 1:], (0, 1), value=float("-inf")).amax(1)
        correct = scores.detach()[:, 0] > best_other
        stats = {"accuracy": correct.sum(), f"group{WITH_NEGATIVE}": (batch.groups > 1).sum()}
        return losses.sum() / batch.counts["pairs"], {
            name: count / batch.counts["pairs"] for name, count in stats.items()
        }


class BinaryCrossEncoder(Objective):
    """Cross-entropy of sigmoid(s(q, d)) with the label of each pair (Nogueira & Cho 2019, section 3.1), in one pass."""

    Config = CrossEncoderConfig

    def __init__(self, config: CrossEncoderConfig, model: CrossEncoder):
        super().__init__()
        self.config, self.model = config, model

    def collator(self) -> PairCollator:
        return PairCollator(self.model.pad_id)

    def encode(self, chunk: Chunk) -> tuple[None, tuple[Tensor, Tensor]]:
        return None, (self.model(chunk.input_ids, chunk.attention_mask), chunk.rows)

    def metrics(self, batch: Batch) -> Stats:
        return {f"binary{WITH_NEGATIVE}": (batch.groups > 1).sum() / batch.counts["pairs"]}

    def local_loss(self, rest: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        logits, rows = rest
        positives = batch.groups.cumsum(0) - batch.groups
        labels = torch.isin(rows, positives).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / batch.counts["candidates"]
