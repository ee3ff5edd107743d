"""The model for pre-training: a backbone with its masked-language-model head and, optionally, a Condenser head."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from retrievo.models import checkpoints, loading
from retrievo.models.encoder import Encoder
from retrievo.models.encoder_spec import EncoderSpec
from retrievo.models.saving import write_folder
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.support.files import atomic_path
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_FILE = "condenser_head.safetensors"
HEAD_LAYERS = 2  # the paper's head


class Parts(NamedTuple):
    """The attribute names of the modules that pre-training needs, for one type of backbone.

    layers: the layers of the backbone.
    head:   the modules of the masked language model that map token vectors [..., D] to logits [..., V], in order.
    norm:   the normalization after the last layer of a pre-norm backbone.
    """

    layers: str
    head: tuple[str, ...]
    norm: str | None = None


_BERT, _ROBERTA = Parts("encoder.layer", ("cls",)), Parts("encoder.layer", ("lm_head",))
_DISTILBERT = Parts("transformer.layer", ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"))
BACKBONES = {  # by type, as config.json names it; MiniLM is a BERT, or an XLM-R
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "modernbert": Parts("layers", ("head", "decoder"), norm="final_norm"),
}


class CondenserHead(nn.Module):
    """Transformer layers that see the late [CLS] and early tokens: [h_cls^cd; h^cd] = Head([h_cls^late; h^early]).

    coCondenser (Gao & Callan 2022), eq. 4; Condenser (Gao & Callan 2021). What the late layers learn can reach the
    head's tokens through [CLS] only. The layers are new ones of the backbone's own class, drawn as its own were.

    backbone:    determines class and configuration; it is not part of the head.
    layers:      number of layers, 2 in the paper.
    early_layer: the layer that the token vectors come from, 1 ... number of layers; 0 = embeddings; None = the middle.

    Raises: RetrievoError for a layer that the backbone does not have.
    """

    def __init__(self, backbone: PreTrainedModel, layers: int = HEAD_LAYERS, early_layer: int | None = None):
        super().__init__()
        self.config = backbone.config
        depth = self.config.num_hidden_layers
        self.early_layer = depth // 2 if early_layer is None else early_layer
        if not 0 <= self.early_layer <= depth:
            raise RetrievoError("--early-layer", f"found {self.early_layer}", f"0 to {depth} for this backbone")
        parts = BACKBONES[self.config.model_type]
        with checkpoints.seeded():
            stack = backbone.get_submodule(parts.layers)
            self.layers = nn.ModuleList(_fresh_layer(stack, self.config, layers - number) for number in range(layers))
            self.layers.apply(backbone._init_weights)
        self.norm = copy.deepcopy(getattr(backbone, parts.norm)) if parts.norm else nn.Identity()
        self.rotary = copy.deepcopy(
            getattr(backbone, "rotary_emb", None)
        )  # positions, where layers add them; no weights

    def forward(self, early: Tensor, late: Tensor, attention_mask: Tensor) -> Tensor:
        """Token vectors [n, L, D] from those of the early and the last layer, [n, L, D] each; mask [n, L]."""
        hidden = torch.cat([late[:, :1], early[:, 1:]], dim=1)
        beside = {kind: self._beside(kind, hidden, attention_mask) for kind in map(_attention, self.layers)}
        for layer in self.layers:
            hidden = layer(hidden, **beside[_attention(layer)])
        normed: Tensor = self.norm(hidden)
        return normed

    def _beside(self, kind: str, hidden: Tensor, attention_mask: Tensor) -> Values:
        """The arguments, besides the token vectors, for layers with a kind of attention."""
        from transformers import masking_utils as masks

        local = kind == "sliding_attention"
        make = masks.create_bidirectional_sliding_window_mask if local else masks.create_bidirectional_mask
        mask = {"attention_mask": make(self.config, hidden, attention_mask)}
        if self.rotary is None:
            return mask
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return mask | {"position_embeddings": self.rotary(hidden, places, kind)}

    def tensors(self) -> dict[str, Tensor]:
        """Weights by the names of the file: `0. ...`, `1. ...` of the layers."""
        return {name.removeprefix("layers."): tensor for name, tensor in self.state_dict().items()}

    def save(self, path: Path) -> None:
        """Writes the weights and the early layer into one safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, {"early_layer": json.dumps(self.early_layer)}))

    @classmethod
    def load(cls, path: Path, backbone: PreTrainedModel, early_layer: int | None = None) -> CondenserHead:
        """Reads a head; `early_layer` is for files that do not say it.

        Raises: RetrievoError for a file that holds no head of this backbone.
        """
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recorded = (file.metadata() or {}).get("early_layer")
        layers = len({name.split(".")[0] for name in tensors if not name.startswith("norm.")})
        head = cls(backbone, layers, json.loads(recorded) if recorded else early_layer)
        own = head.tensors()
        if {name: tensor.shape for name, tensor in own.items()} != {
            name: value.shape for name, value in tensors.items()
        }:
            raise RetrievoError(path, "a head of another backbone", f"layers of this {backbone.config.model_type}")
        for name, tensor in own.items():  # they share their memory with the head
            tensor.copy_(tensors[name])
        return head


def _fresh_layer(stack: nn.Module, config: Any, from_end: int) -> nn.Module:
    """A new layer of the same class as the backbone's layers.

    from_end: the layer to imitate, where layers differ, counted from the end: 1 = the last; never the first, whose
              input is normalized by the embeddings.
    """
    layer_class: type[nn.Module] = type(stack[0])  # type: ignore[index]
    if "layer_idx" not in inspect.signature(layer_class).parameters or not hasattr(config, "layer_types"):
        return layer_class(config)
    depth = config.num_hidden_layers
    return layer_class(config, min(max(1, depth - from_end), depth - 1))


def _attention(layer: nn.Module) -> str:
    """The kind of attention of a layer, as transformers names it."""
    return getattr(layer, "attention_type", "full_attention")


class MaskedEncoder(Encoder):
    """A tied encoder that keeps the masked-language-model head of its backbone, and a Condenser head where it has one.

    language_model: the masked language model of transformers whose backbone the encoder uses; see `BACKBONES`.
    Raises: RetrievoError for another type of backbone.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: EncoderSpec,
        condenser: CondenserHead | None = None,
    ):
        _check_type(language_model.config.model_type)
        super().__init__(cast("PreTrainedModel", language_model.base_model), tokenizer, spec)
        self.language_model = language_model.float()
        self.condenser = condenser

    @property
    def mlm_head(self) -> nn.Module:
        """Token vectors [..., D] to logits over the vocabulary [..., V]."""
        names = BACKBONES[self.language_model.config.model_type].head
        parts: list[nn.Module] = [getattr(self.language_model, name) for name in names]
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    @classmethod
    def load(
        cls,
        name: str | Path,
        revision: str | None = None,
        notify: Callable[[str], None] = console.warn,
        as_stated: bool = False,
        **overrides: Any,
    ) -> MaskedEncoder:
        """Opens a model as `Encoder.load` does, with the heads that its folder holds; a missing MLM head starts fresh.

        Raises: RetrievoError for what `Encoder.load` refuses, untied encoders, and backbones that are not of a type in
        `BACKBONES`.
        """
        plain = Encoder.load(name, revision, notify, as_stated, **overrides)
        if not plain.spec.tied:
            raise RetrievoError(str(name), "an encoder each for queries and documents", "one for both to pre-train")
        _check_type(plain.backbone.config.model_type)
        folder = loading.read_folder(checkpoints.locate(str(name), revision), str(name)).backbones["document"]
        encoder = cls(_open_language_model(folder, str(name), notify), plain.tokenizer, plain.spec)
        if (folder / HEAD_FILE).is_file():
            encoder.condenser = CondenserHead.load(folder / HEAD_FILE, encoder.backbone)
        return encoder

    def save(self, folder: str | Path, facts: Mapping[str, object] | None = None) -> None:
        """Writes the folder of an encoder whose checkpoint is a masked language model, with its Condenser head.

        transformers opens it as AutoModel and as AutoModelForMaskedLM; `Encoder.load` drops both heads.
        """
        path = Path(folder) / HEAD_FILE
        if self.condenser is None:
            path.unlink(missing_ok=True)
        else:
            self.condenser.save(path)
        write_folder(Path(folder), self.spec, {"document": self.language_model}, self.tokenizer, facts or {})


def _check_type(model_type: str) -> None:
    if model_type not in BACKBONES:
        found = f"a backbone of type {model_type}"
        raise RetrievoError("--model", found, f"one of {', '.join(BACKBONES)}, whose heads pre-training knows")


def _open_language_model(folder: Path, name: str, notify: Callable[[str], None]) -> PreTrainedModel:
    """The masked language model of a checkpoint that is known to hold the whole backbone."""
    from transformers import AutoModelForMaskedLM

    model, info = checkpoints.open_checkpoint(folder, name, AutoModelForMaskedLM)
    if info["missing_keys"]:
        notify(f"{name}: has no masked-language-model head; it starts from a fresh one")
    return model
