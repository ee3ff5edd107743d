"""Options that every command with a model shares, each declared once (standard library only)."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from retrievo.models.dtypes import DTYPES
from retrievo.models.encoder_spec import POOLINGS
from retrievo.support.options import option

DEVICES = ("auto", "cpu", "cuda")


def model_option(default: Any = MISSING, more: str = "", **declared: Any) -> Any:
    """`--model`; `more` is what the help adds for a command."""
    help = (
        "Model folder or Hugging Face name. Folders of retrievo, sentence-transformers and transformers can be loaded."
    )
    return option(f"{help} {more}".rstrip(), default=default, path_or_name=True, group="Model", **declared)


def revision_option(**declared: Any) -> Any:
    """`--revision`."""
    help = "Branch, tag or commit of a model on the Hugging Face hub."
    return option(help, default=None, affects_output=False, hidden_default="main", group="Model", **declared)


def dtype_option(**declared: Any) -> Any:
    """`--dtype`."""
    help = "Number format for computation. auto is bfloat16 where the hardware is fast at it, else float32."
    return option(help, default="auto", choices=tuple(DTYPES), group="Precision and memory", **declared)


def device_option(**declared: Any) -> Any:
    """`--device`."""
    help = "Device to compute on. auto is a GPU where one is available, else the CPU."
    return option(help, default="auto", choices=DEVICES, affects_output=False, group="Machine", **declared)


def chunk_tokens_option(
    default: int | str = "auto",
    auto: str = "1,024 tokens per CPU core, or 4,096 tokens on an accelerator",
    **declared: Any,
) -> Any:
    """`--chunk-tokens`; `auto` says what it is in words."""
    help = f"Maximum number of tokens per forward pass, padding included. auto is {auto}."
    return option(help, default=default, minimum=1, words=("auto",), group="Precision and memory", **declared)


def bidirectional_option(**declared: Any) -> Any:
    """`--bidirectional`."""
    help = "Let each token of a decoder attend to later tokens too. The model's config.json records it."
    return option(help, default=False, group="Model", **declared)


def pooling_option(**declared: Any) -> Any:
    """`--pooling`."""
    help = "How token vectors become one vector, for a model folder that does not specify it."
    return option(
        help,
        default=None,
        choices=tuple(POOLINGS),
        hidden_default="the model's own, else cls",
        group="Model",
        **declared,
    )
