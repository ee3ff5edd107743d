"""The encoder, which maps queries and documents to vectors with a backbone, pooling and normalization."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrievo.data.given import checked_titles, text_list
from retrievo.data.shards import shard_bounds
from retrievo.models import checkpoints, loading
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder_spec import POOLINGS, ROLES, EncoderSpec
from retrievo.models.inference import ComputeKeywords, compute_rows, evaluating, prepare
from retrievo.models.saving import write_folder
from retrievo.models.tokens import Tokenization, bare, warn_of_texts_without_tokens
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Encoder(nn.Module):
    """Maps queries and documents to vectors, with one backbone for both (tied) or one for each (untied).

    backbone:       the Transformer of documents, and of queries too where the encoder is tied; float32.
    query_backbone: the Transformer of queries of an untied encoder; None = a copy of `backbone`.
    spec, tokenizer: what the model folder keeps; dim: numbers in a vector, D; pad_id: token id that pads.

    Raises: RetrievoError for lengths in `spec` that the backbone has no positions for, and for more tokens in the
    tokenizer than the backbone has vectors for.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: EncoderSpec,
        query_backbone: PreTrainedModel | None = None,
    ):
        super().__init__()
        self.spec, self.tokenizer = spec, tokenizer
        self.dim: int = backbone.config.hidden_size
        self.pad_id: int = tokenizer.pad_token_id
        self.backbone: PreTrainedModel = backbone.float()
        self.query_backbone: PreTrainedModel | None = None
        if not spec.tied:
            self.query_backbone = (query_backbone or copy.deepcopy(backbone)).float()
        _check_fit(spec, backbone, tokenizer)

    def encode(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors `[n, D]` float32 of padded rows `[n, L]` (padding on the right); role: `query` or `document`.

        A text without any token has the zero vector, which scores 0 with every other.
        """
        vectors: Tensor = self(role, input_ids, attention_mask)  # __call__, where hooks (sharded parameters) hang
        return vectors

    def forward(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen, absent = seen_tokens(attention_mask)
        hidden = self.backbone_of(role)(input_ids=input_ids, attention_mask=seen).last_hidden_state
        vectors = POOLINGS[self.spec.pooling](hidden, attention_mask)[:, : self.dim]  # [n, L, H] -> [n, D]
        vectors = functional.normalize(vectors, dim=-1) if self.spec.normalize else vectors
        return vectors.masked_fill(absent[:, None], 0)

    def truncate(self, dim: int | None) -> None:
        """Truncates vectors to their first `dim` dimensions, renormalized if the model normalizes; None = all.

        It costs little quality if the model was trained for it (Kusupati et al. 2022, Matryoshka representations).
        Raises: RetrievoError where `dim` exceeds the model's dimension.
        """
        if dim is not None and dim > self.dim:
            raise RetrievoError("--truncate-dim", f"found {dim}", f"at most {self.dim}, as the model's vectors have")
        self.dim = dim or self.dim

    def vectors(
        self,
        role: str,
        tokens: npt.ArrayLike,
        offsets: npt.ArrayLike,
        compute: ComputeOptions,
        tick: console.Tick | None = None,
    ) -> np.ndarray:
        """Vectors float32 `[n, D]` of n rows of flat tokens, in their order; compute and tick as in `compute_rows`."""
        vectors = torch.empty(len(np.asarray(offsets)) - 1, self.dim, device=self.backbone.device)
        forward = partial(self.encode, role)
        compute_rows(self, forward, tokens, offsets, vectors, compute, pad_id=self.pad_id, tick=tick)
        return vectors.cpu().numpy()

    def encode_queries(self, texts: Iterable[str], **compute: Unpack[ComputeKeywords]) -> np.ndarray:
        """Vectors float32 `[n, D]` of queries: what `retrievo encode --queries --storage-dtype float32` writes.

        texts: a list, or a column of a table. compute: the fields of `ComputeOptions`.
        """
        return self._encoded("query", text_list(texts, "encode_queries()"), None, ComputeOptions(**compute))

    def encode_documents(
        self, texts: Iterable[str], titles: Iterable[str | None] | None = None, **compute: Unpack[ComputeKeywords]
    ) -> np.ndarray:
        """Vectors float32 `[n, D]` of documents: what `retrievo encode --corpus --storage-dtype float32` writes.

        texts, titles: lists, or columns of a table; a title of None is none. compute: the fields of
        `ComputeOptions`.
        """
        listed = text_list(texts, "encode_documents()")
        shown = None if titles is None else checked_titles(titles, len(listed), "encode_documents()")
        return self._encoded("document", listed, shown, ComputeOptions(**compute))

    def _encoded(
        self, role: str, texts: Sequence[str], titles: Sequence[str | None] | None, compute: ComputeOptions
    ) -> np.ndarray:
        """In the shards of `retrievo encode`, so that the bytes are its bytes."""
        prepare(self, compute)
        tokenization = self.tokenization(role)
        vectors, without = np.empty((len(texts), self.dim), np.float32), 0
        for first, end in shard_bounds(len(texts)):
            rows = tokenization.tokenize(texts[first:end], titles and titles[first:end])
            vectors[first:end] = self.vectors(role, rows.tokens, rows.offsets, compute)
            without += rows.without_tokens
        warn_of_texts_without_tokens("encoder", without, role)
        return vectors

    @property
    def backbones(self) -> tuple[PreTrainedModel, ...]:
        """The Transformers: one for both roles, or one for documents and one for queries."""
        return (self.backbone,) if self.query_backbone is None else (self.backbone, self.query_backbone)

    def backbone_of(self, role: str) -> PreTrainedModel:
        """The Transformer that encodes texts of `role`."""
        if role not in ROLES:
            raise ValueError(f"role {role!r}: known are {', '.join(ROLES)}")
        return self.query_backbone if role == "query" and self.query_backbone is not None else self.backbone

    def tokenization(self, role: str) -> Tokenization:
        """The tokenization of texts in `role`, for workers and caches, which do not have the model."""
        template = self.spec.title_template if role == "document" else None
        tokenizer_json = self.tokenizer.backend_tokenizer.to_str()
        return Tokenization(tokenizer_json, self.spec.max_length(role), self.spec.prefix(role), template)

    @classmethod
    def load(
        cls,
        name: str | Path,
        revision: str | None = None,
        notify: Callable[[str], None] = console.warn,
        as_stated: bool = False,
        **overrides: Any,
    ) -> Encoder:
        """Opens a model folder (of retrievo, sentence-transformers or plain Hugging Face) or a hub model.

        overrides: fields of EncoderSpec that replace what the folder says; None = as the folder says. `tied=False`
        on a tied folder gives each role its own copy. notify: called with each property that was assumed.
        as_stated: the model is used and not made into another one, so overrides only fill in what the folder leaves
        open.

        Raises: RetrievoError for a model that is not there, can't be fetched, or can't be used as its folder means it;
        UsageError for overrides that contradict the folder, where it is to be used as stated.
        """
        name, chosen = str(name), {key: value for key, value in overrides.items() if value is not None}
        folder = checkpoints.locate(name, revision)
        reading = loading.read_folder(folder, name, chosen)
        if as_stated:
            _refuse_contradictions(reading.stated, chosen)
        tokenizer = loading.open_tokenizer(reading.backbones["document"], reading.lowercase)
        backbones = {
            role: loading.open_backbone(path, name if path == folder else None)
            for role, path in reading.backbones.items()
        }
        spec = _complete(name, reading, chosen, backbones["document"], tokenizer)
        if "query" in backbones:
            _check_same_tokenizer(reading, tokenizer)
        for notice in reading.notices:
            notify(notice)
        encoder = cls(backbones["document"], tokenizer, spec, backbones.get("query"))
        if not reading.own:
            _check_tells_texts_apart(encoder, name)
        return encoder

    def save(self, folder: str | Path, facts: Mapping[str, object] | None = None) -> None:
        """Writes a folder that opens here, in transformers and in sentence-transformers with the same vectors.

        facts: lines for the model card (training data, steps, figures).
        """
        roles = ("document",) if self.spec.tied else ROLES
        backbones = {role: self.backbone_of(role) for role in roles}
        write_folder(Path(folder), self.spec, backbones, self.tokenizer, facts or {})


def seen_tokens(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """A mask without empty rows, and whether each row was empty [n]; an empty row gets one padding token.

    Attention over no tokens is NaN in some implementations, and depends on the other rows of the chunk in others.
    """
    absent = ~attention_mask.bool().any(dim=1)
    seen = attention_mask.clone()
    seen[:, 0] |= absent
    return seen, absent


def position_limit(backbone: PreTrainedModel) -> int | None:
    """The number of positions of a backbone; None = no limit (relative positions)."""
    limit: int | None = getattr(backbone.config, "max_position_embeddings", None)
    if not limit or limit < 0:
        return None
    for module in backbone.modules():  # RoBERTa and its kin count positions from padding_idx + 1: 514 hold 512
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return limit - padding - 1
    return limit


def _check_fit(spec: EncoderSpec, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    loading.check_vocabulary("--model", tokenizer, backbone)
    least, most = tokenizer.num_special_tokens_to_add() + 1, position_limit(backbone)
    for role in ROLES:
        length = spec.max_length(role)
        if length < least or (most is not None and length > most):
            expected = f"{least} to {most}" if most else f"{least} or more"
            raise RetrievoError(f"--{role}-max-length", f"{length} tokens", f"{expected} for this backbone")


def _check_same_tokenizer(reading: loading.Reading, tokenizer: PreTrainedTokenizerBase) -> None:
    other = loading.open_tokenizer(reading.backbones["query"])
    if bare(other.backend_tokenizer.to_str()) != bare(tokenizer.backend_tokenizer.to_str()):
        raise RetrievoError(reading.backbones["query"], "another tokenizer than that of document/", "the same one")


def _refuse_contradictions(stated: Mapping[str, object], overrides: Mapping[str, object]) -> None:
    for name, value in overrides.items():
        if name in stated and stated[name] != value:
            flag, expected = f"--{name.replace('_', '-')}", f"{stated[name]!r}, as the model folder says it"
            raise UsageError(flag, f"found {value!r}", expected, f"leave {flag} out")


def _complete(
    name: str,
    reading: loading.Reading,
    overrides: Mapping[str, object],
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> EncoderSpec:
    """The spec of a folder: what it states, else what is assumed (with a notice), then the user's overrides."""
    if overrides.get("tied") and "query" in reading.backbones:
        raise RetrievoError(name, "one encoder per role", "a tied encoder", "use it untied, or another model")
    stated = dict(reading.stated)
    if not reading.own:
        _assume_lengths(stated, reading.max_length or tokenizer.model_max_length, position_limit(backbone))
        _assume_meaning(name, stated, overrides, backbone, reading.notices)
    return EncoderSpec(**{**stated, **overrides})


def _assume_lengths(stated: Values, longest: int, limit: int | None) -> None:
    if longest > 1_000_000:  # transformers' way to say that the tokenizer has no limit
        longest = limit or EncoderSpec.document_max_length
    for role in ROLES:
        length = stated.get(f"{role}_max_length", longest)
        stated[f"{role}_max_length"] = min(length, limit or length)


def _assume_meaning(
    name: str, stated: Values, overrides: Mapping[str, object], backbone: PreTrainedModel, notices: list[str]
) -> None:
    if "pooling" not in stated and "pooling" not in overrides:
        stated["pooling"] = "cls" if sees_later_tokens(backbone) else "last"
        assumed = f"'{stated['pooling']}' is assumed (--pooling says otherwise)"
        notices.append(f"{name}: does not say how it pools; {assumed}")
    if "similarity" not in stated and "similarity" not in overrides and "normalize" in stated:
        stated["similarity"] = "cosine"  # what sentence-transformers takes where a folder is silent
        notices.append(f"{name}: does not say how it compares vectors; cosine is assumed (--similarity says otherwise)")


@torch.no_grad()
def sees_later_tokens(backbone: PreTrainedModel) -> bool:
    """Whether the first token's vector changes with the second token, by running the model, not by its config."""
    pair = torch.tensor([[0, 0], [0, 1]], device=backbone.device)
    with evaluating(backbone):
        first = backbone(input_ids=pair, attention_mask=torch.ones_like(pair)).last_hidden_state[:, 0]
    return not _same(*first)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-4 * one.norm())  # but for rounding


@torch.no_grad()
def _check_tells_texts_apart(encoder: Encoder, name: str) -> None:
    """Checks that two texts that differ only in their second token have different vectors.

    Raises: RetrievoError, which names the poolings that distinguish them.
    """
    rows = _two_texts(encoder.tokenizer).to(encoder.backbone.device)
    with evaluating(encoder):
        hidden = encoder.backbone(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
    apart = [key for key, pool in POOLINGS.items() if not _same(*pool(hidden, torch.ones_like(rows)))]
    pooling = encoder.spec.pooling
    if pooling not in apart:
        fix = (
            f"pass --pooling {' or '.join(apart)}, or mend the folder"
            if apart
            else "take other weights: these give all texts one vector"
        )
        found = f"texts that begin alike have one vector with the pooling '{pooling}'"
        raise RetrievoError(name, found, "another vector for another text", fix)


def _two_texts(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Tokens [2, L] of two texts that differ in their last word, between the special tokens."""
    backend = tokenizer.backend_tokenizer
    probe = backend.encode("a")
    special = probe.special_tokens_mask
    before = special.index(0) if 0 in special else 0
    after = len(special) - special[::-1].index(0) if 0 in special else 0
    words = sorted(set(backend.get_vocab(with_added_tokens=False).values()) - set(tokenizer.all_special_ids))
    first, middle = words[len(words) // 3], len(words) // 2  # neither reserved nor rare ones, which stand at the ends
    return torch.tensor([[*probe.ids[:before], first, word, *probe.ids[after:]] for word in words[middle : middle + 2]])
