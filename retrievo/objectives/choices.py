"""The objectives by name and their options. Standard library only: the command line reads this before torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from retrievo.learning.losses import LOSSES
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option

_WITH_HEAD = {"objective": ("condenser", "cocondenser")}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Contrastive fine-tuning of queries against documents."""

    loss: tuple[str, ...] = option("What is minimized.", default=("infonce",), choices=tuple(LOSSES))
    loss_weight: tuple[float, ...] = option("Weight of each loss.", default=(1.0,), minimum=0)
    temperature: float = option("Divides the scores.", default=1.0, above=0)
    learn_temperature: bool = option("Train the temperature too, from --temperature on.", default=False)

    def check(self) -> None:
        super().check()
        if len(self.loss) != len(self.loss_weight):
            found = f"{len(self.loss_weight)} weights for {len(self.loss)} losses"
            raise UsageError("--loss-weight", found, "one for each --loss")


@dataclass(frozen=True, kw_only=True)
class MlmConfig(Options):
    """Masked language modelling of spans of documents."""

    max_length: int = option("Tokens of a span, special tokens included.", default=128, minimum=10)
    sentence_boundaries: bool = option("Let spans begin and end with a sentence, where one does.", default=False)
    mask_probability: float = option("Share of the tokens of a span to predict.", default=0.15, above=0, maximum=1)
    whole_word: bool = option("Mask all pieces of a word or none.", default=True)


@dataclass(frozen=True, kw_only=True)
class CondenserConfig(MlmConfig):
    """Masked language modelling through a Condenser head."""

    early_layer: int | None = option(
        "Layer whose tokens the head sees; 0 = embeddings.",
        default=None,
        minimum=0,
        hidden_default="as the model's head, else half of the layers",
        only=_WITH_HEAD,
    )
    head_layers: int | None = option(
        "Layers of the head.", default=None, minimum=1, hidden_default="as the model's head, else 2", only=_WITH_HEAD
    )
    late_mlm: bool = option("Predict masked tokens from the last layer too.", default=True, only=_WITH_HEAD)


@dataclass(frozen=True, kw_only=True)
class CoCondenserConfig(CondenserConfig):
    """Condenser, and spans of one document drawn together, those of others apart."""


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig(Options):
    """A cross-encoder on groups of a relevant document and negatives of one query."""

    pair_loss: str = option(
        "group: the positive against its negatives; binary: each pair for itself.",
        default="group",
        choices=("group", "binary"),
        only={"kind": ("cross-encoder",)},
    )


class Choice(NamedTuple):
    """The options of an objective, and where its class lies."""

    config: type
    target: str  # "module:Class"


OBJECTIVES = {
    "mlm": Choice(MlmConfig, "retrievo.objectives.pretraining:MaskedLanguageModel"),
    "condenser": Choice(CondenserConfig, "retrievo.objectives.pretraining:Condenser"),
    "cocondenser": Choice(CoCondenserConfig, "retrievo.objectives.pretraining:CoCondenser"),
    "finetune": Choice(FinetuneConfig, "retrievo.objectives.finetune:Finetune"),
    "cross-encoder-group": Choice(CrossEncoderConfig, "retrievo.objectives.cross_encoder:GroupCrossEncoder"),
    "cross-encoder-binary": Choice(CrossEncoderConfig, "retrievo.objectives.cross_encoder:BinaryCrossEncoder"),
}
PRETRAINING = ("mlm", "condenser", "cocondenser")


def objective_class(name: str) -> Any:
    """The class of an objective in `OBJECTIVES`; this imports torch."""
    module, attribute = OBJECTIVES[name].target.split(":")
    return getattr(importlib.import_module(module), attribute)
