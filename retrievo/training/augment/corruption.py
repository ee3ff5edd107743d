"""Corruption of views: seeded deletion, replacement and masking of tokens, vectorized in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from retrievo.data.sampling import random_keys, uniform
from retrievo.training.augment.masking import Vocabulary, row_of
from retrievo.training.augment.spans import without

_DELETE, _ROLE, _TOKEN = range(3)  # one stream of random numbers for each purpose


@dataclass(frozen=True, eq=False)
class Corruption:
    """Deletes a share of the tokens of each view, and replaces or masks shares of the rest (Contriever, section 3.1).

    vocabulary: provides replacements and the mask token; None where only deletion is used.
    """

    delete: float = 0.0
    replace: float = 0.0
    mask: float = 0.0
    vocabulary: Vocabulary | None = field(default=None, repr=False)

    def __call__(self, tokens: np.ndarray, offsets: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrupts flat rows ([T], offsets [n + 1]); a draw depends on the row's key [n] and the token's position."""
        row = row_of(offsets, np.arange(len(tokens)))
        of_token = keys[row], np.arange(len(tokens)) - offsets[row]
        tokens = self._exchanged(tokens.astype(np.int64), of_token)
        if not self.delete:
            return tokens, offsets
        gone = uniform(random_keys(_DELETE, *of_token)) < self.delete
        left = np.bincount(row, ~gone, len(keys))
        return without(tokens, offsets, gone & (left > 0)[row])  # a row that would be empty stays whole

    def _exchanged(self, tokens: np.ndarray, of_token: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        if self.vocabulary is None:
            return tokens
        share = uniform(random_keys(_ROLE, *of_token))
        drawn = self.vocabulary.drawn
        other = drawn[(random_keys(_TOKEN, *of_token) % np.uint64(len(drawn))).astype(np.int64)]
        chosen = [share < self.mask, share < self.mask + self.replace]
        return np.select(chosen, [self.vocabulary.mask_id, other], tokens)
