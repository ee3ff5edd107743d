"""Views of documents as a person reads them: what `pretrain --show-views` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from retrievo.training.augment.masking import IGNORED
from retrievo.training.augment.special_tokens import Document
from retrievo.training.feeds.pretrain import ViewCollator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def previews(
    collator: ViewCollator, tokenizer: PreTrainedTokenizerBase, items: Sequence[Document]
) -> Iterator[list[tuple[str, str]]]:
    """(name, text) of each document, of each of its views, and of what is to be predicted in that view."""
    for item in items:
        made = collator([item])
        found = [("text", str(tokenizer.decode(item.tokens.tolist())))]
        for name in sorted(made.rows, reverse=True):  # a query before its document
            tokens, offsets = made.rows[name]
            labels = made.labels.get(name)
            for low, high in pairwise(offsets.tolist()):
                found.append((f"{name}, {high - low} tokens", str(tokenizer.decode(tokens[low:high].tolist()))))
                if labels is not None:
                    hidden = [label for label in labels[low:high].tolist() if label != IGNORED]
                    found.append(("to predict", " ".join(tokenizer.convert_ids_to_tokens(hidden))))
        yield found
