"""The encoder: a backbone, pooling and normalization; texts of two roles to vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from retrievo.models import opening
from retrievo.models.saving import write_folder
from retrievo.models.spec import POOLINGS, ROLES, EncoderSpec
from retrievo.models.tokens import Tokenization, bare
from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Encoder(nn.Module):
    """Queries and documents to vectors, with one backbone for both (tied) or one each.

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
        self.backbone = backbone.float()
        self.query_backbone = None if spec.tied else (query_backbone or copy.deepcopy(backbone)).float()
        _check_fit(spec, backbone, tokenizer)

    def encode(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors `[n, D]` float32 of padded rows `[n, L]` (padding on the right); role: `query` or `document`."""
        return self(role, input_ids, attention_mask)  # through __call__, where hooks (sharded parameters) hang

    def forward(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone_of(role)(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = POOLINGS[self.spec.pooling](hidden, attention_mask)[:, : self.dim]  # [n, L, H] -> [n, D]
        return functional.normalize(vectors, dim=-1) if self.spec.normalize else vectors

    def truncate(self, dim: int | None) -> None:
        """Keeps the first `dim` numbers of each vector, scaled to unit length where the model's are; None = all.

        That costs little where the model was trained for it (Kusupati et al. 2022, Matryoshka representations).
        Raises: RetrievoError for more numbers than vectors have.
        """
        if dim is not None and dim > self.dim:
            raise RetrievoError("--truncate-dim", f"found {dim}", f"at most {self.dim}, as the model's vectors have")
        self.dim = dim or self.dim

    @property
    def backbones(self) -> tuple[PreTrainedModel, ...]:
        """The Transformers: one, or that of documents and that of queries."""
        return (self.backbone,) if self.query_backbone is None else (self.backbone, self.query_backbone)

    def backbone_of(self, role: str) -> PreTrainedModel:
        """The Transformer that encodes texts of `role`."""
        if role not in ROLES:
            raise ValueError(f"role {role!r}: known are {', '.join(ROLES)}")
        return self.query_backbone if role == "query" and self.query_backbone is not None else self.backbone

    def tokenization(self, role: str) -> Tokenization:
        """How texts of `role` become tokens: for workers and caches, which never hold the model."""
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
        """Opens a model folder (ours, sentence-transformers' or plain Hugging Face) or a hub model of this name.

        overrides: fields of EncoderSpec that replace what the folder says; None = as the folder says. `tied=False`
        on a tied folder gives each role its own copy. notify: told what the folder does not state and was assumed.
        as_stated: the model is used and not made into another one, so overrides only fill in what the folder leaves
        open.

        Raises: RetrievoError for a model that is not there, can't be fetched, or can't be used as its folder means it;
        UsageError for overrides that contradict the folder, where it is to be used as stated.
        """
        name, chosen = str(name), {key: value for key, value in overrides.items() if value is not None}
        folder = opening.locate(name, revision)
        reading = opening.read_folder(folder, name, chosen)
        if as_stated:
            _refuse_contradictions(reading.stated, chosen)
        tokenizer = opening.open_tokenizer(reading.backbones["document"], reading.lowercase)
        backbones = {
            role: opening.open_backbone(path, name if path == folder else None)
            for role, path in reading.backbones.items()
        }
        spec = _complete(name, reading, chosen, backbones["document"], tokenizer)
        if "query" in backbones:
            _check_same_tokenizer(reading, tokenizer)
        for notice in reading.notices:
            notify(notice)
        return cls(backbones["document"], tokenizer, spec, backbones.get("query"))

    def save(self, folder: str | Path, facts: Mapping[str, object] | None = None) -> None:
        """Writes a folder that opens here, in transformers and in sentence-transformers with the same vectors.

        facts: lines for the model card (training data, steps, figures).
        """
        roles = ("document",) if self.spec.tied else ROLES
        backbones = {role: self.backbone_of(role) for role in roles}
        write_folder(Path(folder), self.spec, backbones, self.tokenizer, facts or {})


def position_limit(backbone: PreTrainedModel) -> int | None:
    """Most tokens that a backbone has positions for; None = no such limit (relative positions)."""
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if not limit or limit < 0:
        return None
    for module in backbone.modules():  # RoBERTa and its kin count positions from padding_idx + 1: 514 hold 512
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return limit - padding - 1
    return limit


def _check_fit(spec: EncoderSpec, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > backbone.config.vocab_size:
        expected = f"at most the {backbone.config.vocab_size} that the backbone has vectors for"
        raise RetrievoError("--model", f"{len(tokenizer)} tokens in the tokenizer", expected)
    least, most = tokenizer.num_special_tokens_to_add() + 1, position_limit(backbone)
    for role in ROLES:
        length = spec.max_length(role)
        if length < least or (most is not None and length > most):
            expected = f"{least} to {most}" if most else f"{least} or more"
            raise RetrievoError(f"--{role}-max-length", f"{length} tokens", f"{expected} for this backbone")


def _check_same_tokenizer(reading: opening.Reading, tokenizer: PreTrainedTokenizerBase) -> None:
    other = opening.open_tokenizer(reading.backbones["query"])
    if bare(other.backend_tokenizer.to_str()) != bare(tokenizer.backend_tokenizer.to_str()):
        raise RetrievoError(reading.backbones["query"], "another tokenizer than that of document/", "the same one")


def _refuse_contradictions(stated: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if name in stated and stated[name] != value:
            flag, expected = f"--{name.replace('_', '-')}", f"{stated[name]!r}, as the model folder says it"
            raise UsageError(flag, f"found {value!r}", expected, f"leave {flag} out")


def _complete(
    name: str,
    reading: opening.Reading,
    overrides: Mapping[str, Any],
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> EncoderSpec:
    """The spec that a folder means: what it states, what was assumed (and is told), then the user's overrides."""
    if overrides.get("tied") and "query" in reading.backbones:
        raise RetrievoError(name, "one encoder per role", "a tied encoder", "use it untied, or another model")
    stated = dict(reading.stated)
    if not reading.own:
        _assume_lengths(stated, reading.max_length or tokenizer.model_max_length, position_limit(backbone))
        _assume_meaning(name, stated, overrides, backbone, reading.notices)
    return EncoderSpec(**{**stated, **overrides})


def _assume_lengths(stated: dict[str, Any], longest: int, limit: int | None) -> None:
    if longest > 1_000_000:  # transformers' way to say that the tokenizer has no limit
        longest = limit or EncoderSpec.document_max_length
    for role in ROLES:
        length = stated.get(f"{role}_max_length", longest)
        stated[f"{role}_max_length"] = min(length, limit or length)


def _assume_meaning(
    name: str, stated: dict[str, Any], overrides: Mapping[str, Any], backbone: PreTrainedModel, notices: list[str]
) -> None:
    if "pooling" not in stated and "pooling" not in overrides:
        stated["pooling"] = "last" if _is_causal(backbone.config) else "cls"
        assumed = f"'{stated['pooling']}' is assumed (--pooling says otherwise)"
        notices.append(f"{name}: does not say how it pools; {assumed}")
    if "similarity" not in stated and "similarity" not in overrides and "normalize" in stated:
        stated["similarity"] = "cosine"  # what sentence-transformers takes where a folder is silent
        notices.append(f"{name}: does not say how it compares vectors; cosine is assumed (--similarity says otherwise)")


def _is_causal(config: Any) -> bool:
    named = any(name.endswith("ForCausalLM") for name in config.architectures or ())
    return named and getattr(config, "is_causal", True)
