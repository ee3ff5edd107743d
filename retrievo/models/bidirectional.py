"""Decoders as encoders: every token also attends to later ones (BehnamGhader et al. 2024, LLM2Vec, section 2.1)."""

from __future__ import annotations

from retrievo.models.encoder import Encoder, sees_later_tokens
from retrievo.support.errors import RetrievoError


def attend_both_ways(encoder: Encoder) -> None:
    """Removes the causal mask of the backbones; their config.json records it, so that transformers does the same.

    Raises: RetrievoError for a backbone that has no causal mask, and for one whose code ignores the setting.
    """
    for backbone in encoder.backbones:
        if sees_later_tokens(backbone):
            found = f"a {backbone.config.model_type} sees later tokens already"
            raise RetrievoError("--bidirectional", found, "a decoder", "leave --bidirectional out")
        backbone.config.is_causal = False
        if not sees_later_tokens(backbone):
            found = f"transformers' {type(backbone).__name__} keeps its causal mask"
            raise RetrievoError("--bidirectional", found, "a decoder that follows is_causal in its config.json")
