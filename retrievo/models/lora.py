"""Low-rank adapters: W is frozen and replaced by W + (alpha / r) B A, where A [r, in] and B [out, r] are trained.

Hu et al. 2022, LoRA, eq. 3. All linear layers of the backbones have adapters, which are merged into W before a model is
saved, so that the folder is an ordinary one.
"""

from __future__ import annotations

import torch

from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError


def add_adapters(encoder: Encoder, rank: int, alpha: int, seed: int) -> None:
    """Adds an adapter of rank r to every linear layer and freezes the rest of the encoder.

    A is drawn from the seed and B is zero at first, so vectors do not change.
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
    """Merges every adapter into its layer's weights, which leaves plain layers."""
    from peft.tuners.lora import LoraLayer

    for backbone in encoder.backbones:
        for name, layer in list(backbone.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                backbone.set_submodule(name, layer.get_base_layer())
        backbone.requires_grad_(True)
