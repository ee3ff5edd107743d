"""The objectives by name and their options. Standard library only: the command line reads this before torch."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from retrievo.models.encoder_spec import POOLINGS
from retrievo.support.conditions import Condition, only_with, only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.training.losses.losses import LOSSES, SCOPES

DENSE, CROSS_ENCODER = "dense", "cross-encoder"  # what is trained
LONGEST_QUEUE = 131_072  # Contriever's, for the model that is not fine-tuned
DYNAMIC_NEGATIVES = 200  # as in the authors' runs of ADORE (Zhan et al. 2021)
QUERIES_PER_TOPIC = 200  # TAS: 2,000 clusters of MS MARCO's 400,000 queries
LEAST_WINDOW = 16  # two spans of the least length


def _with_loss(setting: str) -> Condition:
    """An option applies beside the losses whose row in `LOSSES` names it."""
    losses = [name for name, row in LOSSES.items() if setting in row.settings]
    return only_with("kind", DENSE) & only_with("loss", *losses)


def with_objective(config: Callable[[], type]) -> Condition:
    """An option applies beside the objectives of pre-training whose row in `OBJECTIVES` has this Config, or its heir.

    config: called when the table is there, since the rows of the table name classes that declare options.
    """
    return only_with(
        "objective", lambda: [name for name in PRETRAINING if issubclass(OBJECTIVES[name].config, config())]
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Contrastive fine-tuning of queries against documents."""

    loss: tuple[str, ...] = option(
        "Loss to minimize. Several losses are summed.",
        default=("infonce",),
        choices=tuple(LOSSES),
        applies=only_with("kind", DENSE),
        shown=True,
        group="Loss",
    )
    loss_weight: tuple[float, ...] = option(
        "Weight of each loss, in the order of --loss.",
        default=(1.0,),
        minimum=0,
        applies=only_with("kind", DENSE),
        group="Loss",
    )
    temperature: float | None = option(
        "Temperature that divides the scores.",
        default=None,
        above=0,
        hidden_default="0.05 for cosine similarity, else 1",
        applies=_with_loss("temperature"),
        group="Loss",
    )
    learn_temperature: bool = option(
        "Train the temperature too, starting from --temperature.",
        default=False,
        applies=_with_loss("temperature"),
        group="Loss",
    )
    label_smoothing: float = option(
        "Fraction of the target probability that is spread evenly over all candidates.",
        default=0.0,
        minimum=0,
        maximum=0.99,
        applies=_with_loss("label_smoothing"),
        group="Loss",
    )
    teacher_temperature: float = option(
        "Temperature that divides the teacher's scores.",
        default=1.0,
        above=0,
        applies=_with_loss("teacher_temperature"),
        group="Loss",
    )
    soft_label_scope: str = option(
        "Documents over which the model's distribution is taken. batch is all documents of the batch, group is the "
        "query's own positive and negatives.",
        default="batch",
        choices=SCOPES,
        applies=_with_loss("soft_label_scope"),
        group="Loss",
    )
    matryoshka: tuple[int, ...] = option(
        "Dimensions to truncate vectors to; the loss is averaged over all dimensions given.",
        default=(),
        minimum=1,
        hidden_default="whole vectors only",
        applies=only_with("kind", DENSE) & only_without("document_embeddings"),
        group="Loss",
    )

    def check(self) -> None:
        super().check()
        if len(self.loss) != len(self.loss_weight):
            weights, losses = len(self.loss_weight), len(self.loss)
            raise UsageError("--loss-weight", f"found {weights} weights for {losses} losses", "one for each --loss")
        if len(set(self.loss)) < len(self.loss):
            raise UsageError("--loss", f"found {', '.join(self.loss)}", "each once")
        if not any(self.loss_weight):
            raise UsageError("--loss-weight", "is 0 for every loss: nothing is learned", "one above 0")


@dataclass(frozen=True, kw_only=True)
class AdoreConfig(FinetuneConfig):
    """Fine-tuning of the query encoder alone, against fixed document vectors."""

    dynamic_negatives: int | None = option(
        "Number of documents retrieved per query at each step to serve as negatives.",
        default=None,
        minimum=1,
        hidden_default=f"{DYNAMIC_NEGATIVES}",
        applies=only_with("document_embeddings"),
        group="Negatives",
    )

    @property
    def found_per_query(self) -> int:
        """`dynamic_negatives`, or their default."""
        return self.dynamic_negatives or DYNAMIC_NEGATIVES


_OF_MLM = with_objective(lambda: MlmConfig)
_OF_CONDENSER = with_objective(lambda: CondenserConfig)
_OF_VIEWS = with_objective(lambda: ViewsConfig)
_OF_CONTRIEVER = with_objective(lambda: ContrieverConfig)


@dataclass(frozen=True, kw_only=True)
class MlmConfig(Options):
    """Masked language modeling of spans of documents."""

    max_length: int = option(
        "Number of tokens per span, special tokens included.",
        default=128,
        minimum=10,
        applies=_OF_MLM,
        group="Objective",
    )
    sentence_boundaries: bool = option(
        "Begin and end spans at sentence boundaries where possible.",
        default=False,
        applies=_OF_MLM,
        group="Objective",
    )
    mask_probability: float = option(
        "Fraction of the tokens of a span to mask and predict.",
        default=0.15,
        above=0,
        maximum=1,
        applies=_OF_MLM,
        group="Objective",
    )
    whole_word: bool = option(
        "Mask whole words instead of single tokens.", default=True, applies=_OF_MLM, group="Objective"
    )


@dataclass(frozen=True, kw_only=True)
class CondenserConfig(MlmConfig):
    """Masked language modeling through a Condenser head."""

    early_layer: int | None = option(
        "Backbone layer whose token vectors the Condenser head reads. 0 is the embedding layer.",
        default=None,
        minimum=0,
        hidden_default="as in the model's head, else the middle layer",
        applies=_OF_CONDENSER,
        group="Objective",
    )
    head_layers: int | None = option(
        "Number of layers of the Condenser head.",
        default=None,
        minimum=1,
        hidden_default="as in the model's head, else 2",
        applies=_OF_CONDENSER,
        group="Objective",
    )
    late_mlm: bool = option(
        "Also predict masked tokens from the last layer of the backbone.",
        default=True,
        applies=_OF_CONDENSER,
        group="Objective",
    )


@dataclass(frozen=True, kw_only=True)
class CoCondenserConfig(CondenserConfig):
    """Condenser, and spans of one document drawn together, those of others apart."""

    weight: tuple[str, ...] = option(
        "Weight of a loss term, as in mlm=0,contrastive=1. A term that is not named has weight 1.",
        default=(),
        applies=with_objective(lambda: CoCondenserConfig),
        group="Objective",
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
        "Number of tokens of the window from which both views of a document are cut.",
        default=256,
        minimum=LEAST_WINDOW,
        applies=_OF_VIEWS,
        group="Objective",
    )
    crop_shortest: float = option(
        "Minimum length of a crop as a fraction of the window.",
        default=0.05,
        above=0,
        maximum=1,
        applies=_OF_VIEWS,
        group="Objective",
    )
    crop_longest: float = option(
        "Maximum length of a crop as a fraction of the window.",
        default=0.5,
        above=0,
        maximum=1,
        applies=_OF_VIEWS,
        group="Objective",
    )
    delete: float = option(
        "Fraction of the tokens of a view to delete.",
        default=0.0,
        minimum=0,
        maximum=0.9,
        applies=_OF_VIEWS,
        group="Objective",
    )
    replace: float = option(
        "Fraction of the tokens of a view to replace with random tokens.",
        default=0.0,
        minimum=0,
        maximum=1,
        applies=_OF_VIEWS,
        group="Objective",
    )
    mask: float = option(
        "Fraction of the tokens of a view to replace with the mask token.",
        default=0.0,
        minimum=0,
        maximum=1,
        applies=_OF_VIEWS,
        group="Objective",
    )
    temperature: float = option(
        "Temperature that divides the scores.", default=0.05, above=0, applies=_OF_VIEWS, group="Objective"
    )
    label_smoothing: float = option(
        "Fraction of the target probability that is spread evenly over all candidates.",
        default=0.0,
        minimum=0,
        maximum=1,
        applies=_OF_VIEWS,
        group="Objective",
    )
    pooling: str | None = option(
        "How token vectors become one vector.",
        default=None,
        choices=tuple(POOLINGS),
        hidden_default="the model's own, else mean",
        applies=_OF_VIEWS,
        group="Objective",
    )
    normalize: bool | None = option(
        "Scale vectors to unit length.",
        default=None,
        hidden_default="the model's own, else no",
        applies=_OF_VIEWS,
        group="Objective",
    )

    def check(self) -> None:
        super().check()
        if self.crop_shortest > self.crop_longest:
            most = f"at most --crop-longest ({self.crop_longest:g})"
            raise UsageError("--crop-shortest", f"found {self.crop_shortest:g}", most)
        if self.replace + self.mask > 1:
            raise UsageError("--replace", f"found {self.replace:g} beside --mask {self.mask:g}", "at most 1 together")


@dataclass(frozen=True, kw_only=True)
class SimClrConfig(ViewsConfig):
    """Contrast of two crops of a document among those of the batch, all by one encoder."""

    symmetric: bool = option(
        "Contrast each crop with all other crops of the batch (NT-Xent), instead of queries with keys only.",
        default=False,
        applies=with_objective(lambda: SimClrConfig),
        group="Objective",
    )


@dataclass(frozen=True, kw_only=True)
class IctConfig(ViewsConfig):
    """Contrast of a span of a document with the rest of it."""

    keep_query: float = option(
        "Fraction of the documents that keep the span which serves as the query.",
        default=0.1,
        minimum=0,
        maximum=1,
        applies=with_objective(lambda: IctConfig),
        group="Objective",
    )


@dataclass(frozen=True, kw_only=True)
class ContrieverConfig(ViewsConfig):
    """Contrast of two crops of a document, one by a slow copy of the encoder, among a queue of earlier ones (MoCo)."""

    momentum: float = option(
        "Momentum of the key encoder (fraction of its weights that it keeps at each step).",
        default=0.9995,
        minimum=0,
        maximum=1,
        applies=_OF_CONTRIEVER,
        group="Objective",
    )
    queue_size: int | None = option(
        "Number of earlier keys that serve as negatives.",
        default=None,
        minimum=1,
        hidden_default=f"{LONGEST_QUEUE:,}, at most a quarter of the documents",
        applies=_OF_CONTRIEVER,
        group="Objective",
    )


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig(Options):
    """A cross-encoder on groups of a relevant document and negatives of one query."""

    pair_loss: str = option(
        "Loss of a cross-encoder. group contrasts the positive with its negatives, binary classifies each pair.",
        default="group",
        choices=("group", "binary"),
        applies=only_with("kind", CROSS_ENCODER),
        group="Loss",
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
PRETRAINING = tuple(name for name, row in OBJECTIVES.items() if issubclass(row.config, (MlmConfig, ViewsConfig)))
CONTRASTIVE = tuple(name for name in PRETRAINING if issubclass(OBJECTIVES[name].config, ViewsConfig))  # no head


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
