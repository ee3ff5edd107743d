"""Decoders as encoders: every token may see the later ones too (BehnamGhader et al. 2024, LLM2Vec, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from retrievo.models.encoder import Encoder
from retrievo.support.errors import RetrievoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attend_both_ways(encoder: Encoder) -> None:
    """Takes the causal mask from the backbones; their config.json says so, and transformers follows it.

    Raises: RetrievoError for a backbone that has no such mask, and for one whose code keeps it.
    """
    for backbone in encoder.backbones:
        if _sees_later_tokens(backbone):
            found = f"a {backbone.config.model_type} sees later tokens already"
            raise RetrievoError("--bidirectional", found, "a decoder", "leave --bidirectional out")
        backbone.config.is_causal = False
        if not _sees_later_tokens(backbone):
            found = f"transformers' {type(backbone).__name__} keeps its causal mask"
            raise RetrievoError("--bidirectional", found, "a decoder that follows is_causal in its config.json")


@torch.no_grad()
def _sees_later_tokens(backbone: PreTrainedModel) -> bool:
    """Whether the first token's vector changes with the second token."""
    training = backbone.training
    pair = torch.tensor([[0, 0], [0, 1]], device=backbone.device)
    first = backbone.eval()(input_ids=pair, attention_mask=torch.ones_like(pair)).last_hidden_state[:, 0]
    backbone.train(training)
    return bool((first[0] - first[1]).norm() > 1e-4 * first[0].norm())  # beyond rounding
