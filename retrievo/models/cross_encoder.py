"""The cross-encoder: a Transformer that reads a query and a document together and gives one score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retrievo.data.options import TITLE_TEMPLATE
from retrievo.models import opening
from retrievo.models.card import cross_encoder_card
from retrievo.models.computing import compute_rows
from retrievo.models.encoder import position_limit
from retrievo.models.pairs import PairTokenization
from retrievo.models.saving import move_into_place, write_tokenizer
from retrievo.models.spec import CROSS_ENCODER_FILE
from retrievo.support.errors import RetrievoError
from retrievo.support.files import remove

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
DEFAULT_LENGTH = 512  # tokens of a pair, for a model that has no limit
# what sentence-transformers applies to logits, by the last part of the name that a folder gives it
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Identity": lambda logits: logits, "Sigmoid": torch.sigmoid}


@dataclass(frozen=True, kw_only=True)
class CrossEncoderSpec:
    """The properties of a cross-encoder that are kept with it (`cross-encoder.json`).

    max_length: tokens of a pair, special tokens included. title_template: how title and text of a document become one
    text. activation: what turns logits into scores, a name in `ACTIVATIONS`.
    """

    max_length: int
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
        _check_length(spec.max_length, tokenizer, model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [n] float32 of padded rows [n, L] of a `PairTokenization`."""
        arguments = {"attention_mask": attention_mask}
        if self.type_stride:
            arguments["token_type_ids"] = input_ids // self.type_stride
            input_ids = input_ids % self.type_stride
        logits: Tensor = self.model(input_ids=input_ids, **arguments).logits  # [n, 1]
        return logits[:, 0].float()

    @property
    def tokenization(self) -> PairTokenization:
        """How pairs become tokens: for workers and caches, which never hold the model."""
        tokenizer_json = self.tokenizer.backend_tokenizer.to_str()
        return PairTokenization(tokenizer_json, self.spec.max_length, self.spec.title_template, self.type_stride)

    def scores(self, tokens: npt.ArrayLike, offsets: npt.ArrayLike, **options: Any) -> np.ndarray:
        """Scores float32 [n] of n rows of flat tokens, in their order; options as in `compute_rows`."""
        logits = torch.empty(len(np.asarray(offsets)) - 1, device=self.model.device)
        compute_rows(self, self, tokens, offsets, logits, pad_id=self.pad_id, **options)
        return ACTIVATIONS[self.spec.activation](logits).cpu().numpy()

    @classmethod
    def load(
        cls, name: str | Path, revision: str | None = None, *, train: bool = False, **overrides: Any
    ) -> CrossEncoder:
        """Opens a cross-encoder of retrievo, sentence-transformers or transformers; `train`: any checkpoint will do.

        train: a checkpoint without a classification head gets a fresh, seeded one, and scores will be logits.
        overrides: fields of CrossEncoderSpec that replace what the folder says; None = as the folder says.

        Raises: RetrievoError for a model that is not there, or gives more or less than one score.
        """
        folder = opening.locate(str(name), revision)
        if not (folder / "config.json").is_file():
            raise RetrievoError(str(name), "no checkpoint (it has no config.json)", "a cross-encoder")
        tokenizer = opening.open_tokenizer(folder)
        model = _open_classifier(folder, str(name), fresh_head=train)
        spec = asdict(_read_spec(folder, tokenizer, model))
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
        with opening.quiet():
            self.model.save_pretrained(staging)
        write_tokenizer(staging, self.spec.max_length, self.tokenizer)
        (staging / "README.md").write_text(cross_encoder_card(self.spec.title_template, facts or {}), encoding="utf-8")
        (staging / CROSS_ENCODER_FILE).write_text(json.dumps(asdict(self.spec), indent=2) + "\n", encoding="utf-8")
        move_into_place(staging, Path(folder), last=CROSS_ENCODER_FILE)


def _check_length(length: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    least, most = tokenizer.num_special_tokens_to_add(pair=True) + 2, position_limit(model)
    if length < least or (most is not None and length > most):
        expected = f"{least} to {most}" if most else f"{least} or more"
        raise RetrievoError("--max-length", f"{length} tokens", f"{expected} for this model")


def _open_classifier(folder: Path, name: str, *, fresh_head: bool) -> PreTrainedModel:
    """A sequence classifier with one label in float32."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    opening.require_safetensors(folder, name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        labels = 1 if fresh_head else config.num_labels
        with opening.quiet(), opening.seeded():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=labels,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for other labels; a body of other sizes is told below
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RetrievoError(folder, f"not a checkpoint that transformers opens ({error})") from error
    missing = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if not fresh_head and (missing or labels != 1):
        absent = sorted(info["missing_keys"])
        found = f"its weights lack {absent[0]}" if absent else f"it gives {labels} scores for a pair"
        fix = "train one: retrievo train --kind cross-encoder"
        raise RetrievoError(name, f"is no cross-encoder: {found}", None, fix)
    if body := [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]:
        raise RetrievoError(folder, f"{len(body)} weights are not in the checkpoint ({body[0]}, ...)", "a whole model")
    return model


def _read_spec(folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> CrossEncoderSpec:
    """What the folder says; of a foreign one the length of its tokenizer and the activation that it names."""
    path = folder / CROSS_ENCODER_FILE
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            fix = "install the retrievo that wrote this model"
            raise RetrievoError(path, f"format {values.get('format')}", f"format {FORMAT}", fix)
        return CrossEncoderSpec(**values)
    limit = position_limit(model) or DEFAULT_LENGTH
    return CrossEncoderSpec(max_length=min(tokenizer.model_max_length, limit), activation=_activation(folder, model))


def _activation(folder: Path, model: PreTrainedModel) -> str:
    """As sentence-transformers finds it: in one of three places, else a sigmoid."""
    path = folder / "config_sentence_transformers.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told = getattr(model.config, "sentence_transformers", None) or {}
    old = getattr(model.config, "sbert_ce_default_activation_function", None)
    named = own.get("activation_fn") or told.get("activation_fn") or old or "Sigmoid"
    activation = str(named).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise RetrievoError(folder, f"the activation {named}", f"one of {', '.join(ACTIVATIONS)}")
    return activation
