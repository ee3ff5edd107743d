"""Low-rank adapters: W stays as it is, and W + (alpha / r) B A is used, with A [r, in] and B [out, r] trained.

Hu et al. 2022, LoRA, eq. 3. They are in all linear layers of the backbones, and merged into W before a model is saved,
so that a folder never shows how it was trained.
"""

from __future__ import annotations

import torch

from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError


def add_adapters(encoder: Encoder, rank: int, alpha: int, seed: int) -> None:
    """Puts an adapter of rank r into every linear layer; nothing else of the encoder is trained from now on.

    A is drawn from the seed; B is zero at first, so the vectors are the same as before.
    Raises: RetrievoError where the peft package is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise RetrievoError("--lora-rank", "needs the peft package", None, "pip install 'retrievo[lora]'") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for backbone in encoder.backbones:
            backbone.requires_grad_(False)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"), backbone)


def merge_adapters(encoder: Encoder) -> None:
    """Adds every adapter to the weights that it goes with, and leaves plain layers."""
    from peft.tuners.lora import LoraLayer

    for backbone in encoder.backbones:
        for name, layer in list(backbone.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                backbone.set_submodule(name, layer.get_base_layer())
        backbone.requires_grad_(True)
