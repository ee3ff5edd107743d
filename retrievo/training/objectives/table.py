"""The objectives by name and their options. Standard library only: the command line reads this before torch."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from retrievo.models.encoder_spec import POOLINGS
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.training.losses.losses import LOSSES, SCOPES, WITHOUT_TEMPERATURE

_WITH_HEAD = {"objective": ("condenser", "cocondenser")}
_WITH_MLM = {"objective": ("mlm", *_WITH_HEAD["objective"])}
# objectives that train the vectors of views alone, without any head
CONTRASTIVE = ("simclr", "ict", "contriever")
_WITH_VIEWS = {"objective": CONTRASTIVE}
_WITH_TEMPERATURE = {"loss": tuple(name for name in LOSSES if name not in WITHOUT_TEMPERATURE)}
LONGEST_QUEUE = 131_072  # Contriever's, for the model that is not fine-tuned
DYNAMIC_NEGATIVES = 200  # as in the authors' runs of ADORE (Zhan et al. 2021)
QUERIES_PER_TOPIC = 200  # TAS: 2,000 clusters of MS MARCO's 400,000 queries
LEAST_WINDOW = 16  # two spans of the least length


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Contrastive fine-tuning of queries against documents."""

    loss: tuple[str, ...] = option("What is minimized.", default=("infonce",), choices=tuple(LOSSES))
    loss_weight: tuple[float, ...] = option("Weight of each loss.", default=(1.0,), minimum=0)
    temperature: float | None = option(
        "Divides the scores.",
        default=None,
        above=0,
        hidden_default="0.05 for cosines, else 1",
        only=_WITH_TEMPERATURE,
    )
    learn_temperature: bool = option(
        "Train the temperature too, from --temperature on.", default=False, only=_WITH_TEMPERATURE
    )
    label_smoothing: float = option(
        "Share of the target that all candidates have in common.",
        default=0.0,
        minimum=0,
        maximum=0.99,
        only={"loss": ("infonce",)},
    )
    teacher_temperature: float = option("Divides the teacher's scores.", default=1.0, above=0, only={"loss": ("kl",)})
    soft_label_scope: str = option(
        "What the model's distribution is over: all documents of the batch, or those of the query's group.",
        default="batch",
        choices=SCOPES,
        only={"loss": ("kl",)},
    )
    matryoshka: tuple[int, ...] = option(
        "Dimensions that shall do alone: the loss is the mean over vectors cut to each.", default=(), minimum=1
    )

    def check(self) -> None:
        super().check()
        if len(self.loss) != len(self.loss_weight):
            found = f"{len(self.loss_weight)} weights for {len(self.loss)} losses"
            raise UsageError("--loss-weight", found, "one for each --loss")
        if len(set(self.loss)) < len(self.loss):
            raise UsageError("--loss", f"found {', '.join(self.loss)}", "each once")
        if not any(self.loss_weight):
            raise UsageError("--loss-weight", "is 0 for every loss: nothing is learned", "one above 0")


@dataclass(frozen=True, kw_only=True)
class AdoreConfig(FinetuneConfig):
    """Fine-tuning of the query encoder alone, against fixed document vectors."""

    dynamic_negatives: int | None = option(
        "With --document-embeddings: documents found for each query at each step, which are negatives.",
        default=None,
        minimum=1,
        hidden_default=f"{DYNAMIC_NEGATIVES}",
    )

    @property
    def found_per_query(self) -> int:
        """`dynamic_negatives`, or their default."""
        return self.dynamic_negatives or DYNAMIC_NEGATIVES


@dataclass(frozen=True, kw_only=True)
class MlmConfig(Options):
    """Masked language modeling of spans of documents."""

    max_length: int = option("Tokens of a span, special tokens included.", default=128, minimum=10, only=_WITH_MLM)
    sentence_boundaries: bool = option(
        "Let spans begin and end with a sentence, where one does.", default=False, only=_WITH_MLM
    )
    mask_probability: float = option(
        "Share of the tokens of a span to predict.", default=0.15, above=0, maximum=1, only=_WITH_MLM
    )
    whole_word: bool = option("Mask all pieces of a word or none.", default=True, only=_WITH_MLM)


@dataclass(frozen=True, kw_only=True)
class CondenserConfig(MlmConfig):
    """Masked language modeling through a Condenser head."""

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

    weight: tuple[str, ...] = option(
        "Weight of a term of the loss, as in mlm=0,contrastive=1; 1 where unnamed.",
        default=(),
        only={"objective": ("cocondenser",)},
    )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss.

        Raises: UsageError for other terms, for what is no number at least 0, and where nothing is left to learn.
        """
        found = dict.fromkeys(("mlm", "contrastive"), 1.0)
        for text in self.weight:
            name, _, number = text.partition("=")
            if name not in found or not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", number):
                raise UsageError("--weight", f"found '{text}'", "mlm=NUMBER or contrastive=NUMBER")
            found[name] = float(number)
        if not any(found.values()):
            raise UsageError("--weight", "is 0 for all terms", "something to learn")
        return found

    def check(self) -> None:
        super().check()
        _ = self.weights


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(Options):
    """Contrast of two views of a document: the defaults are Contriever's (Izacard et al. 2021, appendix A)."""

    window: int = option(
        "Tokens of a document that its views are cut from.", default=256, minimum=LEAST_WINDOW, only=_WITH_VIEWS
    )
    crop_shortest: float = option(
        "Share of the window that a crop has at least.", default=0.05, above=0, maximum=1, only=_WITH_VIEWS
    )
    crop_longest: float = option(
        "Share of the window that a crop has at most.", default=0.5, above=0, maximum=1, only=_WITH_VIEWS
    )
    delete: float = option(
        "Share of the tokens of a view that are deleted.", default=0.0, minimum=0, maximum=0.9, only=_WITH_VIEWS
    )
    replace: float = option(
        "Share of the tokens of a view that become another token.", default=0.0, minimum=0, maximum=1, only=_WITH_VIEWS
    )
    mask: float = option(
        "Share of the tokens of a view that become the mask token.", default=0.0, minimum=0, maximum=1, only=_WITH_VIEWS
    )
    temperature: float = option("Divides the scores.", default=0.05, above=0, only=_WITH_VIEWS)
    label_smoothing: float = option(
        "Share of the target that is spread over all candidates.", default=0.0, minimum=0, maximum=1, only=_WITH_VIEWS
    )
    pooling: str | None = option(
        "How token vectors become one vector.",
        default=None,
        choices=tuple(POOLINGS),
        hidden_default="as the model's folder says, else mean",
        only=_WITH_VIEWS,
    )
    normalize: bool | None = option(
        "Scale vectors to unit length.",
        default=None,
        hidden_default="as the model's folder says, else not",
        only=_WITH_VIEWS,
    )

    def check(self) -> None:
        super().check()
        if self.crop_shortest > self.crop_longest:
            found = f"found {self.crop_shortest:g}"
            raise UsageError("--crop-shortest", found, f"at most --crop-longest ({self.crop_longest:g})")
        if self.replace + self.mask > 1:
            raise UsageError("--replace", f"is {self.replace:g} beside --mask {self.mask:g}", "at most 1 together")


@dataclass(frozen=True, kw_only=True)
class SimClrConfig(ViewsConfig):
    """Contrast of two crops of a document among those of the batch, all by one encoder."""

    symmetric: bool = option(
        "Let each crop compete with all others (NT-Xent), not only queries with keys.",
        default=False,
        only={"objective": ("simclr",)},
    )


@dataclass(frozen=True, kw_only=True)
class IctConfig(ViewsConfig):
    """Contrast of a span of a document with the rest of it."""

    keep_query: float = option(
        "Share of the documents that keep the span which is their query.",
        default=0.1,
        minimum=0,
        maximum=1,
        only={"objective": ("ict",)},
    )


@dataclass(frozen=True, kw_only=True)
class ContrieverConfig(ViewsConfig):
    """Contrast of two crops of a document, one by a slow copy of the encoder, among a queue of earlier ones (MoCo)."""

    momentum: float = option(
        "Share of itself that the slow copy of the encoder keeps at each step.",
        default=0.9995,
        minimum=0,
        maximum=1,
        only={"objective": ("contriever",)},
    )
    queue_size: int | None = option(
        "Earlier keys that are negatives.",
        default=None,
        minimum=1,
        hidden_default=f"{LONGEST_QUEUE:,}, at most a quarter of the documents",
        only={"objective": ("contriever",)},
    )


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig(Options):
    """A cross-encoder on groups of a relevant document and negatives of one query."""

    pair_loss: str = option(
        "group: the positive against its negatives; binary: each pair for itself.",
        default="group",
        choices=("group", "binary"),
        only={"kind": ("cross-encoder",)},
    )


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(CoCondenserConfig, SimClrConfig, IctConfig, ContrieverConfig):
    """The options of all objectives of pre-training."""


class Choice(NamedTuple):
    """The options of an objective, where its class lies, and the values that its paper gives to common options."""

    config: type
    target: str  # "module:Class"
    recipe: Mapping[str, Any]


# coCondenser (Gao & Callan 2022, section 4.1), AdamW's constants as its authors' code leaves them
_GAO = {"batch_size": 2_000, "learning_rate": 1e-4, "beta2": 0.999, "epsilon": 1e-8}
# Contriever (Izacard et al. 2021, appendix A: the model that is not fine-tuned), AdamW's constants of its authors' code
_IZACARD = {"batch_size": 2_048, "learning_rate": 5e-5, "beta2": 0.98, "epsilon": 1e-6}

OBJECTIVES = {
    "mlm": Choice(MlmConfig, "retrievo.training.objectives.masked_lm:MaskedLanguageModel", _GAO),
    "condenser": Choice(CondenserConfig, "retrievo.training.objectives.masked_lm:Condenser", _GAO),
    "cocondenser": Choice(CoCondenserConfig, "retrievo.training.objectives.masked_lm:CoCondenser", _GAO),
    "simclr": Choice(SimClrConfig, "retrievo.training.objectives.simclr:SimClr", _IZACARD),
    "ict": Choice(IctConfig, "retrievo.training.objectives.simclr:InverseCloze", _IZACARD),
    "contriever": Choice(
        ContrieverConfig, "retrievo.training.objectives.contriever:MomentumContrast", _IZACARD | {"delete": 0.1}
    ),
    "finetune": Choice(FinetuneConfig, "retrievo.training.objectives.finetune:Finetune", {}),
    "adore": Choice(AdoreConfig, "retrievo.training.objectives.adore:Adore", {}),
    "cross-encoder-group": Choice(
        CrossEncoderConfig, "retrievo.training.objectives.cross_encoder:GroupCrossEncoder", {}
    ),
    "cross-encoder-binary": Choice(
        CrossEncoderConfig, "retrievo.training.objectives.cross_encoder:BinaryCrossEncoder", {}
    ),
}
PRETRAINING = (*_WITH_MLM["objective"], *CONTRASTIVE)


def recipe_defaults(name: str) -> str:
    """What the recipes say of an option, for its help: `0.0001 (mlm, condenser), 5e-05 (simclr)`."""
    found: dict[str, list[str]] = {}
    for objective in PRETRAINING:
        if name in OBJECTIVES[objective].recipe:
            found.setdefault(f"{OBJECTIVES[objective].recipe[name]:g}", []).append(objective)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def objective_class(name: str) -> Any:
    """The class of an objective in `OBJECTIVES`; this imports torch."""
    module, attribute = OBJECTIVES[name].target.split(":")
    return getattr(importlib.import_module(module), attribute)
