"""The properties of an encoder that its folder records (`retrievo.json`), and the poolings.

Standard library only: option tables import this module.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from retrievo.data.options import TITLE_TEMPLATE
from retrievo.support.errors import RetrievoError, did_you_mean
from retrievo.support.values import Values

if TYPE_CHECKING:
    from torch import Tensor

SPEC_FILE, CROSS_ENCODER_FILE = "retrievo.json", "cross-encoder.json"
FORMAT = 1
ROLES = ("query", "document")
SIMILARITIES = ("dot", "cosine")


def _first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the first token ([CLS]): `[n, L, D]`, `[n, L]` -> `[n, D]` float32."""
    return hidden[:, 0].float()


def _mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that the mask keeps: `[n, L, D]`, `[n, L]` -> `[n, D]` float32."""
    kept = mask.unsqueeze(-1).float()  # [n, L, 1]
    return (hidden.float() * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def _last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the last token that the mask keeps; padding is on the right: `[n, L, D]`, `[n, L]` -> `[n, D]`."""
    last = (mask.sum(dim=1) - 1).clamp(min=0)  # [n]
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1).float()


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first_token,
    "mean": _mean_of_tokens,
    "last": _last_token,
}


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The properties of a model that are stored with it, so that no command needs them as options.

    pooling:             how token vectors become one vector, a name in `POOLINGS`.
    normalize:           whether vectors are scaled to unit length.
    similarity:          how a query and a document vector are compared: `dot` or `cosine`.
    query_prefix:        text put before each query (E5: "query: ").
    document_prefix:     text put before each document (E5: "passage: ").
    title_template:      how title and text of a document become one text; the result is stripped.
    query_max_length:    tokens of a query, special tokens included; longer ones are truncated.
    document_max_length: tokens of a document, special tokens included; longer ones are truncated.
    tied:                one backbone for both roles; otherwise one each.
    format:              version of this file.

    Raises: RetrievoError for a value that is out of its range.
    """

    pooling: str = "cls"
    normalize: bool = False
    similarity: str = "dot"
    query_prefix: str = ""
    document_prefix: str = ""
    title_template: str = TITLE_TEMPLATE
    query_max_length: int = 512
    document_max_length: int = 512
    tied: bool = True
    format: int = FORMAT

    def __post_init__(self) -> None:
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("similarity", self.similarity, SIMILARITIES)
        _check_template(self.title_template)
        for name in ("query_max_length", "document_max_length"):
            if getattr(self, name) < 1:
                raise RetrievoError(name, f"{getattr(self, name)} tokens", "1 or more")

    def max_length(self, role: str) -> int:
        """The most tokens of a text in `role`, special tokens included."""
        return self.query_max_length if role == "query" else self.document_max_length

    def prefix(self, role: str) -> str:
        """The text put before every text in `role`."""
        return self.query_prefix if role == "query" else self.document_prefix

    def to_json(self) -> str:
        """The content of `retrievo.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: object = SPEC_FILE) -> EncoderSpec:
        """Reads the content of `retrievo.json`.

        Raises: RetrievoError for invalid JSON, an unknown format or key, or a value of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RetrievoError(where, f"no JSON ({error})", "the file that retrievo wrote") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else None
            raise RetrievoError(
                where, f"format {found}", f"format {FORMAT}", "install the retrievo that wrote this model"
            )
        _check_types(values, where)
        return cls(**values)


def _check_types(values: Values, where: object) -> None:
    expected = {field.name: type(field.default) for field in fields(EncoderSpec)}
    for name, value in values.items():
        if name not in expected:
            raise RetrievoError(where, f"the key '{name}'", fix=did_you_mean(name, expected))
        if type(value) is not expected[name]:
            raise RetrievoError(where, f"{name} = {value!r}", f"a value of type {expected[name].__name__}")


def _check_choice(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise RetrievoError(name, f"'{value}'", fix=did_you_mean(value, known))


def _check_template(template: str) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise RetrievoError("title_template", f"'{template}' ({error})", "{title} and {text}") from error
    if "text" not in names or not set(names) <= {"title", "text"}:
        raise RetrievoError(
            "title_template", f"'{template}'", "{text}, and {title} where titles count, and nothing else"
        )
