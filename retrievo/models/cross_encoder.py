"""The cross-encoder: a Transformer that reads a query and a document together and gives one score."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retrievo.data.given import checked_titles, text_list
from retrievo.data.options import TITLE_TEMPLATE
from retrievo.data.shards import PAIRS_PER_SHARD
from retrievo.models import checkpoints, loading
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import position_limit, seen_tokens
from retrievo.models.encoder_spec import CROSS_ENCODER_FILE
from retrievo.models.inference import ComputeKeywords, compute_rows, prepare
from retrievo.models.model_card import cross_encoder_card
from retrievo.models.pairs import PairTokenization
from retrievo.models.saving import move_into_place, write_tokenizer
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.files import remove
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
DEFAULT_LENGTH = 512  # tokens of a pair, for a model that has no limit
UNLIMITED = 1_000_000  # transformers says that a tokenizer has no limit by a greater number
# what sentence-transformers applies to logits, by the last part of the name that a folder gives it
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Identity": lambda logits: logits, "Sigmoid": torch.sigmoid}


@dataclass(frozen=True, kw_only=True)
class CrossEncoderSpec:
    """The properties of a cross-encoder that are kept with it (`cross-encoder.json`).

    max_length: tokens of a pair, special tokens included. title_template: how title and text of a document become one
    text. activation: what turns logits into scores, a name in `ACTIVATIONS`. query_prefix: text put before each query.
    """

    max_length: int
    query_prefix: str = ""
    title_template: str = TITLE_TEMPLATE
    activation: str = "Identity"
    format: int = FORMAT


class CrossEncoder(nn.Module):
    """Scores of pairs: a linear map of the model's pooled first token (Nogueira & Cho 2019, section 3).

    model: a sequence classifier of transformers with one label; float32.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: CrossEncoderSpec):
        super().__init__()
        self.model, self.tokenizer, self.spec = model.float(), tokenizer, spec
        self.pad_id: int = tokenizer.pad_token_id
        segments = "token_type_ids" in tokenizer.model_input_names and getattr(model.config, "type_vocab_size", 0) > 1
        self.type_stride: int = model.config.vocab_size if segments else 0
        # where a decoder's head looks for the last token that is no padding
        model.config.get_text_config().pad_token_id = self.pad_id
        loading.check_vocabulary("--model", tokenizer, model)
        _check_length(spec.max_length, tokenizer, model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [n] float32 of padded rows [n, L] of a `PairTokenization`; 0 for a pair without any token."""
        seen, absent = seen_tokens(attention_mask)
        arguments = {"attention_mask": seen}
        if self.type_stride:
            arguments["token_type_ids"] = input_ids // self.type_stride
            input_ids = input_ids % self.type_stride
        logits: Tensor = self.model(input_ids=input_ids, **arguments).logits  # [n, 1]
        return logits[:, 0].float().masked_fill(absent, 0)

    @property
    def tokenization(self) -> PairTokenization:
        """The tokenization of pairs, for workers and caches, which do not have the model."""
        tokenizer_json = self.tokenizer.backend_tokenizer.to_str()
        spec = self.spec
        return PairTokenization(
            tokenizer_json, spec.max_length, spec.title_template, self.type_stride, spec.query_prefix
        )

    def scores(
        self,
        tokens: npt.ArrayLike,
        offsets: npt.ArrayLike,
        compute: ComputeOptions,
        tick: console.Tick | None = None,
    ) -> np.ndarray:
        """Scores float32 [n] of n rows of flat tokens, in their order; compute and tick as in `compute_rows`."""
        logits = torch.empty(len(np.asarray(offsets)) - 1, device=self.model.device)
        compute_rows(self, self, tokens, offsets, logits, compute, pad_id=self.pad_id, tick=tick)
        return ACTIVATIONS[self.spec.activation](logits).cpu().numpy()

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        titles: Iterable[str | None] | None = None,
        **compute: Unpack[ComputeKeywords],
    ) -> np.ndarray:
        """Scores float32 [n] of pairs (query, text of a document), as `retrievo rerank` gives them.

        titles: of the documents, one for each pair; None is none. compute: the fields of `ComputeOptions`.
        """
        queries, texts = _both(pairs)
        shown = None if titles is None else checked_titles(titles, len(texts), "score()")
        options = ComputeOptions(**compute)
        prepare(self, options)
        tokenization = self.tokenization
        scores, without = np.empty(len(texts), np.float32), 0
        for first in range(0, len(texts), PAIRS_PER_SHARD):
            part = slice(first, first + PAIRS_PER_SHARD)
            asked = tokenization.query.tokenize(queries[part])
            read = tokenization.document.tokenize(texts[part], shown and shown[part])
            rows = [(asked.row(place), read.row(place)) for place in range(len(texts[part]))]
            tokens, offsets = tokenization.rows(rows)
            scores[part] = self.scores(tokens, offsets, options)
            without += int((offsets[1:] == offsets[:-1]).sum())
        if without:
            console.warn(f"{without:,} pairs have no token for this model; their logit is 0")
        return scores

    @classmethod
    def load(
        cls,
        name: str | Path,
        revision: str | None = None,
        notify: Callable[[str], None] = console.warn,
        *,
        train: bool = False,
        **overrides: Any,
    ) -> CrossEncoder:
        """Opens a cross-encoder of retrievo, sentence-transformers or transformers; `train`: any checkpoint will do.

        train: a checkpoint without a classification head gets a fresh, seeded one, and scores will be logits.
        overrides: fields of CrossEncoderSpec that replace what the folder says; None = as the folder says.
        notify: a function that is called with each assumption and each unused part of the folder.

        Raises: RetrievoError for a model that does not exist, or does not give exactly one score.
        """
        folder = checkpoints.locate(str(name), revision)
        reading = loading.read_cross_encoder(folder, str(name), fresh_head=train)
        body = reading.backbones["document"]
        tokenizer = loading.open_tokenizer(body, reading.lowercase)
        model = _open_classifier(body, str(name), fresh_head=train)
        spec = asdict(_read_own_spec(folder) if reading.own else _their_spec(reading, folder, tokenizer, model))
        for notice in reading.notices:
            notify(notice)
        if train:
            spec["activation"] = "Identity"
        chosen = {key: value for key, value in overrides.items() if value is not None}
        return cls(model, tokenizer, CrossEncoderSpec(**{**spec, **chosen}))

    def save(self, folder: str | Path, facts: Mapping[str, object] | None = None) -> None:
        """Writes a folder that opens here, in transformers and in sentence-transformers with the same scores."""
        staging = Path(folder) / ".saving"
        remove(staging)
        staging.mkdir(parents=True)
        activation = type(nn.Identity() if self.spec.activation == "Identity" else nn.Sigmoid())
        path = f"{activation.__module__}.{activation.__name__}"
        self.model.config.sentence_transformers = {"activation_fn": path}
        with checkpoints.quiet():
            self.model.save_pretrained(staging)
        if self.spec.query_prefix:
            _write_prompt(staging, self.spec.query_prefix, path)
        write_tokenizer(staging, self.spec.max_length, self.tokenizer)
        (staging / "README.md").write_text(cross_encoder_card(self.spec.title_template, facts or {}), encoding="utf-8")
        (staging / CROSS_ENCODER_FILE).write_text(json.dumps(asdict(self.spec), indent=2) + "\n", encoding="utf-8")
        move_into_place(staging, Path(folder), last=CROSS_ENCODER_FILE)


def _both(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Queries and texts of pairs.

    Raises: RetrievoError for what are no pairs of texts.
    """
    listed = list(pairs)
    for place, pair in enumerate(listed):
        if isinstance(pair, str) or len(pair) != 2:
            raise RetrievoError("score()", f"item {place} is {pair!r:.60}", "a pair (query, text)")
    return tuple(text_list((pair[side] for pair in listed), "score()") for side in (0, 1))  # type: ignore[return-value]


def _check_length(length: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    least, most = tokenizer.num_special_tokens_to_add(pair=True) + 2, position_limit(model)
    if length < least or (most is not None and length > most):
        expected = f"{least} to {most}" if most else f"{least} or more"
        raise RetrievoError("--max-length", f"{length} tokens", f"{expected} for this model")


def _write_prompt(folder: Path, prompt: str, activation: str) -> None:
    """What sentence-transformers reads a prompt for queries from: only there, and only beside its modules."""
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    settings = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": kind}],
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": activation,
            "prompts": {"query": prompt},
            "default_prompt_name": "query",
        },
    }
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_classifier(folder: Path, name: str, *, fresh_head: bool) -> PreTrainedModel:
    """A sequence classifier with one label in float32."""
    from transformers import AutoModelForSequenceClassification

    def arguments(config: Any) -> Values:
        has_head = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
        if fresh_head or not has_head:  # as sentence-transformers does
            config.num_labels = 1
        # a head for other labels; a body of another size is reported below
        return {"ignore_mismatched_sizes": True}

    model, info = checkpoints.open_checkpoint(folder, name, AutoModelForSequenceClassification, arguments)
    labels = model.config.num_labels
    missing = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if not fresh_head and (missing or labels != 1):
        absent = sorted(info["missing_keys"])
        found = f"its weights lack {absent[0]}" if absent else f"it gives {labels} scores for a pair"
        fix = "train one: retrievo train --kind cross-encoder"
        raise RetrievoError(name, f"is no cross-encoder: {found}", None, fix)
    if body := [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]:
        raise RetrievoError(folder, f"{len(body)} weights are not in the checkpoint ({body[0]}, ...)", "a whole model")
    return model


def _read_own_spec(folder: Path) -> CrossEncoderSpec:
    path = folder / CROSS_ENCODER_FILE
    values = checkpoints.read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        fix = "install the retrievo that wrote this model"
        raise RetrievoError(path, f"format {found}", f"format {FORMAT}", fix)
    known = asdict(CrossEncoderSpec(max_length=0)).keys()
    if values.keys() - known or "max_length" not in values:
        raise RetrievoError(path, f"the keys {', '.join(values)}", f"those of {', '.join(known)}")
    return CrossEncoderSpec(**values)


def _their_spec(
    reading: loading.Reading, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> CrossEncoderSpec:
    """The spec of a foreign folder: the length in its settings or its tokenizer, its prompt and its activation."""
    length = min(reading.max_length or tokenizer.model_max_length, position_limit(model) or sys.maxsize)
    return CrossEncoderSpec(
        max_length=length if length < UNLIMITED else DEFAULT_LENGTH,
        query_prefix=reading.stated.get("query_prefix", ""),
        activation=_activation(folder, model, reading.stated.get("activation")),
    )


def _activation(folder: Path, model: PreTrainedModel, stated: str | None) -> str:
    """The activation as sentence-transformers finds it: beside its modules, else in the config, else a sigmoid."""
    settings = getattr(model.config, "sentence_transformers", None) or {}
    old = getattr(model.config, "sbert_ce_default_activation_function", None)
    named = str(stated or settings.get("activation_fn") or old or "torch.nn.Sigmoid")
    activation = named.rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or not named.startswith("torch."):
        raise RetrievoError(folder, f"the activation {named}", f"one of torch's {', '.join(ACTIVATIONS)}")
    return activation
