"""The readable views of documents that `pretrain --show-views` prints."""

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
    """For each document, (name, text) pairs: the document, each of its views, and the tokens to predict."""
    for item in items:
        batch = collator([item])
        found = [("text", str(tokenizer.decode(item.tokens.tolist())))]
        for name in sorted(batch.rows, reverse=True):  # a query before its document
            tokens, offsets = batch.rows[name]
            labels = batch.labels.get(name)
            for low, high in pairwise(offsets.tolist()):
                found.append((f"{name}, {high - low} tokens", str(tokenizer.decode(tokens[low:high].tolist()))))
                if labels is not None:
                    hidden = [label for label in labels[low:high].tolist() if label != IGNORED]
                    found.append(("to predict", " ".join(tokenizer.convert_ids_to_tokens(hidden))))
        yield found
