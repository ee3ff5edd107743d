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
from retrievo.training.objectives.objective import CONTESTED, Objective
from retrievo.training.objectives.simclr import among_all
from retrievo.training.objectives.table import CoCondenserConfig, CondenserConfig, MlmConfig

SPAN = "span"  # the named set of every objective here
_CUT, _MASK = range(2)  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class SpanCollator:
    """Documents into a Batch of masked spans; cut first, then masked. A pure function of tokens and keys.

    pairs:          two spans of each document, 2i and 2i + 1 from document i, instead of one.
    longest:        most tokens of a span, without the frame.
    frame:          what stands around a span.
    Labels are `IGNORED` where nothing is to be predicted. Counts: `documents`, `spans`, and `masked` tokens.
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
        """Spans of each document."""
        return 2 if self.pairs else 1

    @property
    def least_tokens(self) -> int:
        """Tokens that a document needs."""
        return self.spans * LEAST_SPAN

    def expected_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of a span of documents of so many tokens [n]."""
        return np.minimum(lengths // self.spans, self.longest)

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
        """Flat tokens and offsets of the spans."""
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
    """What stands around a span: special tokens without the model's prefix, since a span is no text of either role."""
    return frame(dataclasses.replace(encoder.tokenization("document"), prefix=""))


class Hidden(NamedTuple):
    """What a backbone says of a chunk."""

    rows: Tensor  # [n]
    attention_mask: Tensor  # [n, L]
    early: Tensor  # [n, L, D] what a Condenser head reads; the same as `late` where there is none
    late: Tensor  # [n, L, D]


class MaskedLanguageModel(Objective):
    """Cross-entropy of masked tokens given the others (BERT, Devlin et al. 2019): their mean over the global batch.

    Logits over the vocabulary are worked out for masked tokens only.
    Raises: RetrievoError where a span is longer than the backbone has positions for.
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
        self._terms: dict[str, Tensor] = {}  # of the chunks of a step so far
        self._set_head()

    def _set_head(self) -> None:
        self.encoder.condenser = None  # a head that takes no part would no longer fit the backbone

    @property
    def mlm_weight(self) -> float:
        """The factor before the cross-entropy."""
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
        self._terms = {}  # the first that a step calls; what was left is of chunks that were timed or did not fit
        return super().contrast(vectors, batch)

    def local_loss(self, rest: Hidden, batch: Batch) -> Tensor:
        if not self.mlm_weight:
            return torch.zeros((), device=rest.late.device)
        labels = _padded_labels(rest, batch)
        chosen = labels != IGNORED
        states = {name: state[chosen] for name, state in self.states(rest).items()}  # of [m, D]
        logits = self.encoder.mlm_head(torch.cat(list(states.values())))  # [k m, V]
        losses = functional.cross_entropy(logits, labels[chosen].repeat(len(states)), reduction="none")
        terms = losses.view(len(states), -1).sum(1) / max(1, batch.counts["masked"])  # [k]
        for name, term in zip(states, terms.detach(), strict=True):
            self._terms[name] = self._terms.get(name, 0) + term.float()
        return self.mlm_weight * terms.sum()

    def figures(self, batch: Batch) -> Stats:
        """The terms of the loss apart."""
        zero = torch.zeros((), device=next(self.parameters()).device)  # of a rank without documents
        terms, self._terms = self._terms, {}
        return {name: terms.get(name, zero) for name in self.term_names} if self.mlm_weight else {}

    @property
    def term_names(self) -> tuple[str, ...]:
        """The terms of the loss."""
        return ("mlm_loss",)

    def states(self, hidden: Hidden) -> dict[str, Tensor]:
        """The token vectors [n, L, D] that masked tokens are predicted from; each has its loss, of equal weight."""
        return {"mlm_loss": hidden.late}


def _padded_labels(hidden: Hidden, batch: Batch) -> Tensor:
    """The labels of a chunk [n, L]."""
    flat, mask = batch.labels[SPAN], hidden.attention_mask
    starts = batch.rows[SPAN].offsets.to(flat.device)[hidden.rows]
    place = starts[:, None] + torch.arange(mask.shape[1], device=flat.device)
    return flat[place.where(mask.bool(), 0)].where(mask.bool(), IGNORED)


class Condenser(MaskedLanguageModel):
    """Masked language modeling through a head that sees the late [CLS] and early tokens (coCondenser, eq. 1-5).

    With `late_mlm` the backbone's own masked language modeling is added, unweighted, as in the published recipe.
    The mean over the masked tokens of the global batch, as the reference takes it; eq. 5 is written as a sum, which
    would weigh it some 19 times against the contrast at 128 tokens.

    A head of the encoder goes on; where it has none, a fresh one is put there.
    Raises: RetrievoError for a layer that the backbone does not have, options that contradict the head of the encoder,
    and a tokenizer that puts nothing before a text.
    """

    Config = CondenserConfig
    config: CondenserConfig

    def _set_head(self) -> None:
        encoder, config = self.encoder, self.config
        # the vector that is trained here is the late [CLS], compared by inner product (eq. 6)
        encoder.spec = dataclasses.replace(encoder.spec, pooling="cls", normalize=False, similarity="dot")
        if not span_frame(encoder).before:
            raise RetrievoError("--model", "a tokenizer that puts nothing before a text", "one that puts [CLS] there")
        if encoder.condenser is None:
            layers = config.head_layers or HEAD_LAYERS
            encoder.condenser = CondenserHead(encoder.backbone, layers, config.early_layer)
        _check_head(encoder.condenser, config)

    @property
    def head(self) -> CondenserHead:
        """The encoder's Condenser head."""
        assert self.encoder.condenser is not None, "put there when the objective was made"
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


def _check_head(head: CondenserHead, config: CondenserConfig) -> None:
    for name, found in (("early_layer", head.early_layer), ("head_layers", len(head.layers))):
        wanted = getattr(config, name)
        if wanted not in (None, found):
            flag = f"--{name.replace('_', '-')}"
            raise RetrievoError(flag, f"found {wanted}", f"{found}, as the model's head has it", f"leave {flag} out")


class CoCondenser(Condenser):
    """Condenser, with a contrast of late [CLS] vectors: L = L_mlm + L_co, both means (coCondenser, eq. 7).

    `weight` puts a factor before each term (mlm=0: the ablation of section 5.3); terms are logged without it.

    Two spans come from each document. Of each, the other one competes with all other spans of the global batch
    (eq. 6): -log exp<h_ij, h_i'j'> / sum over kl != ij of exp<h_ij, h_kl>, without temperature; the mean over spans.
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
                "the model has no Condenser head: a fresh one harms the backbone; pre-train with the objective "
                "condenser first"
            )
        super()._set_head()

    def encode(self, chunk: Chunk) -> tuple[Tensor, Hidden]:
        _, hidden = super().encode(chunk)
        return hidden.late[:, 0], hidden

    def contrast(self, vectors: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Stats]:
        super().contrast(vectors, batch)
        loss, stats = among_all(vectors[SPAN], vectors[SPAN], paired=True)
        weight = self.config.weights["contrastive"]
        return weight * loss, stats if weight else {k: v for k, v in stats.items() if not k.endswith(CONTESTED)}
