"""Options that every command with a model shares, each declared once (standard library only)."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from retrievo.models.dtypes import DTYPES
from retrievo.models.encoder_spec import POOLINGS
from retrievo.support.options import option

DEVICES = ("auto", "cpu", "cuda")


def model_option(default: Any = MISSING, **declared: Any) -> Any:
    """`--model`."""
    return option(
        "Model folder (retrievo, sentence-transformers, Hugging Face) or hub name.",
        default=default,
        path_or_name=True,
        **declared,
    )


def revision_option(**declared: Any) -> Any:
    """`--revision`."""
    return option("Branch, tag or commit of a hub model.", default=None, affects_output=False, **declared)


def dtype_option(**declared: Any) -> Any:
    """`--dtype`."""
    help = "What the model computes in; auto is bfloat16 where the hardware multiplies it fast, else float32."
    return option(help, default="auto", choices=tuple(DTYPES), **declared)


def device_option(**declared: Any) -> Any:
    """`--device`."""
    return option("Where to compute.", default="auto", choices=DEVICES, affects_output=False, **declared)


def chunk_tokens_option(
    default: int | str = "auto", auto: str = "1,024 for each core of a CPU, 4,096 on an accelerator", **declared: Any
) -> Any:
    """`--chunk-tokens`; `auto` says what it is in words."""
    help = f"Most tokens computed at once, padding included; auto: {auto}."
    return option(help, default=default, minimum=1, words=("auto",), **declared)


def bidirectional_option(**declared: Any) -> Any:
    """`--bidirectional`."""
    help = "Let the tokens of a decoder see later ones too; the model's config.json keeps it."
    return option(help, default=False, **declared)


def pooling_option() -> Any:
    """`--pooling`."""
    help = "How token vectors become one vector, for a model folder that does not say it."
    return option(help, default=None, choices=tuple(POOLINGS), hidden_default="as the folder says, else cls")
