"""Pre-training on bare documents: masked language modeling, Condenser and coCondenser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retrievo.data.sampling import random_keys
from retrievo.models.condenser import HEAD_LAYERS, CondenserHead, MaskedEncoder
from retrievo.models.encoder import position_limit
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.masking import IGNORED, Vocabulary
from retrievo.training.augment.spans import LEAST_SPAN, cut_pairs, cut_windows, gather, whole_sentences
from retrievo.training.augment.special_tokens import Document, Frame, frame, framed
from retrievo.training.batch import Batch, Chunk, Stats
from retrievo.training.objectives.objective import WITH_NEGATIVE, Objective
from retrievo.training.objectives.simclr import contrast_among_ranks
from retrievo.training.objectives.table import CoCondenserConfig, CondenserConfig, MlmConfig

SPAN = "span"  # the named set of every objective here
_CUT, _MASK = range(2)  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class SpanCollator:
    """Makes a Batch of masked spans from documents: cuts spans, then masks them. A pure function of tokens and keys.

    pairs:          whether each document i gives two spans, 2i and 2i + 1, instead of one.
    longest:        maximal number of tokens of a span, without the frame.
    frame:          the special tokens around a span.
    Labels are `IGNORED` at tokens that are not predicted. The counts are `documents`, `spans`, and `masked` tokens.
    """

    vocabulary: Vocabulary
    pairs: bool
    longest: int
    probability: float
    sentences: bool
    frame: Frame
    pad_id: int

    @property
    def spans(self) -> int:
        """Number of spans of each document."""
        return 2 if self.pairs else 1

    @property
    def least_tokens(self) -> int:
        """Number of tokens that a document must have."""
        return self.spans * LEAST_SPAN

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Number of tokens of a span, for documents of these lengths [n]."""
        spans: np.ndarray = np.minimum(lengths // self.spans, self.longest)
        return spans

    def __call__(self, items: Sequence[Document]) -> Batch:
        keys = np.array([item.key for item in items], np.uint64)
        tokens, offsets = self._cut([item.tokens for item in items], random_keys(_CUT, keys))
        spans = np.tile(np.arange(self.spans), len(items))
        seeds = random_keys(_MASK, keys.repeat(self.spans), spans)
        seen, labels = self.vocabulary.mask(tokens, offsets, seeds, self.probability)
        nothing = Frame(*((IGNORED,) * len(part) for part in self.frame))
        return Batch(
            rows={SPAN: framed(seen, offsets, self.frame)},
            labels={SPAN: framed(labels, offsets, nothing).tokens},
            counts={"documents": len(items), "spans": len(spans), "masked": int((labels != IGNORED).sum())},
            pad_ids={SPAN: self.pad_id},
        )

    def _cut(self, texts: Sequence[np.ndarray], keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts the spans and returns them as flat tokens and offsets."""
        lengths = np.array([len(text) for text in texts], np.int64)
        spans = (cut_pairs if self.pairs else cut_windows)(lengths, self.longest, keys)
        tokens, offsets = gather(texts, spans)
        if not self.sentences:
            return tokens, offsets
        closing = spans.starts + spans.lengths[:, None] == lengths[:, None]
        sentence = self.vocabulary.sentence
        kept = whole_sentences(tokens, offsets, sentence, spans.starts.ravel() == 0, closing.ravel())
        return tokens[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]


def span_frame(encoder: MaskedEncoder) -> Frame:
    """The special tokens around a span, without the model's prefix, since a span is neither a query nor a document."""
    return frame(dataclasses.replace(encoder.tokenization("document"), prefix=""))


class Hidden(NamedTuple):
    """The token vectors that a backbone computes for a chunk."""

    rows: Tensor  # [n]
    attention_mask: Tensor  # [n, L]
    early: Tensor  # [n, L, D] input of the Condenser head; the same as `late` without a head
    late: Tensor  # [n, L, D]


class MaskedLanguageModel(Objective):
    """The mean cross-entropy over the masked tokens of the global batch, given the others (BERT, Devlin et al. 2019).

    Logits over the vocabulary are computed for masked tokens only.
    Raises: RetrievoError where --max-length exceeds the number of positions of the backbone.
    """

    Config = MlmConfig
    pairs = False
    encoder: MaskedEncoder

    def __init__(self, config: MlmConfig, encoder: MaskedEncoder):
        super().__init__()
        self.config, self.encoder = config, encoder
        most = position_limit(encoder.backbone)
        if most is not None and config.max_length > most:
            raise RetrievoError("--max-length", f"found {config.max_length}", f"at most {most} for this backbone")
        self._terms: dict[str, Tensor] = {}  # sums over the chunks of the current step so far
        self._set_head()

    def _set_head(self) -> None:
        self.encoder.condenser = None  # an untrained head would no longer match the backbone

    @property
    def mlm_weight(self) -> float:
        """The weight of the cross-entropy in the loss."""
        return 1.0

    def collator(self) -> SpanCollator:
        tokenizer, config = self.encoder.tokenizer, self.config
        around = span_frame(self.encoder)
        return SpanCollator(
            vocabulary=Vocabulary.of(tokenizer, config.whole_word),
            pairs=self.pairs,
            longest=config.max_length - around.size,
            probability=config.mask_probability,
            sentences=config.sentence_boundaries,
            frame=around,
            pad_id=self.encoder.pad_id,
        )

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Hidden]:
        late = self.encoder.backbone(input_ids=chunk.input_ids, attention_mask=chunk.attention_mask).last_hidden_state
        return None, Hidden(chunk.rows, chunk.attention_mask, late, late)

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        self._terms = {}  # `contrast` begins a step: earlier sums are of chunks that were timed or did not fit
        return super().contrast(vectors, batch)

    def local_loss(self, rest: Hidden, batch: Batch) -> Tensor:
        if not self.mlm_weight:
            return torch.zeros((), device=rest.late.device)
        labels = _padded_labels(rest, batch)
        chosen = labels != IGNORED
        states = {name: state[chosen] for name, state in self.states(rest).items()}  # [m, D] each
        logits = self.encoder.mlm_head(torch.cat(list(states.values())))  # [k m, V]
        losses = functional.cross_entropy(logits, labels[chosen].repeat(len(states)), reduction="none")
        terms = losses.view(len(states), -1).sum(1) / max(1, batch.counts["masked"])  # [k]
        for name, term in zip(states, terms.detach(), strict=True):
            self._terms[name] = self._terms.get(name, 0) + term.float()
        return self.mlm_weight * terms.sum()

    def metrics(self, batch: Batch) -> Stats:
        """Each term of the loss."""
        zero = torch.zeros((), device=next(self.parameters()).device)  # for a rank without documents
        terms, self._terms = self._terms, {}
        return {name: terms.get(name, zero) for name in self.term_names} if self.mlm_weight else {}

    @property
    def term_names(self) -> tuple[str, ...]:
        """The names of the loss terms."""
        return ("mlm_loss",)

    def states(self, hidden: Hidden) -> dict[str, Tensor]:
        """The token vectors [n, L, D] that predict the masked tokens; each gives a loss term of equal weight."""
        return {"mlm_loss": hidden.late}


def _padded_labels(hidden: Hidden, batch: Batch) -> Tensor:
    """The labels of a chunk [n, L]."""
    flat, mask = batch.labels[SPAN], hidden.attention_mask
    starts = batch.rows[SPAN].offsets.to(flat.device)[hidden.rows]
    place = starts[:, None] + torch.arange(mask.shape[1], device=flat.device)
    return flat[place.where(mask.bool(), 0)].where(mask.bool(), IGNORED)


class Condenser(MaskedLanguageModel):
    """Masked language modeling through a head that reads the late [CLS] and the early tokens (coCondenser, eq. 1-5).

    With `late_mlm` the backbone's own masked language modeling loss is added, unweighted, as in the published recipe.
    Both are means over the masked tokens of the global batch, as in the reference implementation; the paper writes eq.
    5 as a sum, which at 128 tokens would give it about 19 times the weight against the contrastive loss.

    The encoder's head is trained further; an encoder without a head gets a new one.
    Raises: RetrievoError for a layer that the backbone does not have, options that contradict the encoder's head, and a
    tokenizer that adds no token before a text.
    """

    Config = CondenserConfig
    config: CondenserConfig

    def _set_head(self) -> None:
        encoder, config = self.encoder, self.config
        # training is of the late [CLS] vector, compared by inner product (eq. 6)
        encoder.spec = dataclasses.replace(encoder.spec, pooling="cls", normalize=False, similarity="dot")
        if not span_frame(encoder).before:
            raise RetrievoError("--model", "a tokenizer that adds no token before a text", "one that adds [CLS]")
        if encoder.condenser is None:
            layers = config.head_layers or HEAD_LAYERS
            encoder.condenser = CondenserHead(encoder.backbone, layers, config.early_layer)
        _check_as_built("--early-layer", config.early_layer, encoder.condenser.early_layer)
        _check_as_built("--head-layers", config.head_layers, len(encoder.condenser.layers))

    @property
    def head(self) -> CondenserHead:
        """The encoder's Condenser head."""
        assert self.encoder.condenser is not None, "the constructor sets it"
        return self.encoder.condenser

    def encode(self, chunk: Chunk) -> tuple[Tensor | None, Hidden]:
        found = self.encoder.backbone(
            input_ids=chunk.input_ids, attention_mask=chunk.attention_mask, output_hidden_states=True
        )
        early = found.hidden_states[self.head.early_layer]
        return None, Hidden(chunk.rows, chunk.attention_mask, early, found.last_hidden_state)

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("head_mlm_loss", "late_mlm_loss") if self.config.late_mlm else ("head_mlm_loss",)

    def states(self, hidden: Hidden) -> dict[str, Tensor]:
        condensed = self.head(hidden.early, hidden.late, hidden.attention_mask)
        return dict(zip(self.term_names, (condensed, hidden.late), strict=False))


def _check_as_built(flag: str, wanted: int | None, built: int) -> None:
    """Raises RetrievoError where the head that a model has already is built otherwise than is wanted."""
    if wanted not in (None, built):
        raise RetrievoError(flag, f"found {wanted}", f"{built}, as the model's head has it", f"leave {flag} out")


class CoCondenser(Condenser):
    """Condenser with a contrastive loss on late [CLS] vectors: L = L_mlm + L_co, both means (coCondenser, eq. 7).

    `weight` multiplies each term (mlm=0 is the ablation of section 5.3); the log holds the unweighted terms.

    Each document i gives two spans, each the positive of the other; all other spans of the global batch are negatives
    (eq. 6). The loss is the mean over spans of -log exp<h_ij, h_ij'> / sum over kl != ij of exp<h_ij, h_kl>, without
    temperature.
    """

    Config = CoCondenserConfig
    config: CoCondenserConfig
    pairs = True
    vector_names = (SPAN,)

    @property
    def mlm_weight(self) -> float:
        return self.config.weights["mlm"]

    def _set_head(self) -> None:
        if self.encoder.condenser is None:
            console.warn(
                "the model has no Condenser head, and a new one harms the backbone: pre-train with the objective "
                "condenser first"
            )
        super()._set_head()

    def encode(self, chunk: Chunk) -> tuple[Tensor, Hidden]:
        _, hidden = super().encode(chunk)
        return hidden.late[:, 0], hidden

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        super().contrast(vectors, batch)
        loss, stats = contrast_among_ranks(vectors[SPAN], vectors[SPAN], paired=True)
        weight = self.config.weights["contrastive"]
        return weight * loss, stats if weight else {k: v for k, v in stats.items() if not k.endswith(WITH_NEGATIVE)}
