"""Whole-word masking of flat tokens, for any vocabulary whose pieces say where words begin (numpy only)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrievo.data.sampling import random_keys, uniform
from retrievo.models.tokens import bare
from retrievo.support.errors import RetrievoError
from retrievo.support.values import Values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that is not predicted
# shares of the chosen tokens; the rest stay (BERT, Devlin et al. 2019, section 3.1)
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
_WORD, _ROLE, _TOKEN = range(3)  # one stream of random numbers for each purpose
_SENTENCE_ENDS = frozenset(("...", *".!?…。！？"))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The properties of a tokenizer's tokens that masking needs, by token id; picklable, without the tokenizer.

    begins:    whether a token begins a word [V].
    ends:      whether the token after it begins a word [V].
    special:   whether a token is never masked and never a replacement [V].
    sentence:  whether a token ends a sentence [V].
    drawn:     the ids of possible replacements.
    mask_id:   the id of the mask token.
    """

    begins: np.ndarray
    ends: np.ndarray
    special: np.ndarray
    sentence: np.ndarray
    drawn: np.ndarray
    mask_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, whole_word: bool = True) -> Vocabulary:
        """Reads a tokenizer; without `whole_word` each token is a word.

        Raises: RetrievoError for a tokenizer without mask token, or whose pieces do not say where words begin.
        """
        if tokenizer.mask_token_id is None:
            raise RetrievoError("--model", "a tokenizer without mask token", "one of a masked language model")
        scheme = _scheme(json.loads(bare(tokenizer.backend_tokenizer.to_str())))
        if scheme is None and whole_word:
            found = "a tokenizer whose pieces do not say where words begin"
            raise RetrievoError("--whole-word", found, None, "pass --no-whole-word")
        pieces = {number: (scheme or _Scheme()).read(piece) for piece, number in tokenizer.get_vocab().items()}
        numbers = list(pieces)
        begins, ends, special = np.ones((3, 1 + max(numbers)), bool)  # a number without a token is never drawn
        sentence = ~special
        special[numbers] = False
        sentence[numbers] = [piece.text in _SENTENCE_ENDS for piece in pieces.values()]
        if whole_word:
            begins[numbers] = [piece.begins for piece in pieces.values()]
            ends[numbers] = [piece.ends for piece in pieces.values()]
        added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
        alone = [*tokenizer.all_special_ids, *added]
        special[alone] = begins[alone] = ends[alone] = True
        return cls(begins, ends, special, sentence, np.flatnonzero(~special), tokenizer.mask_token_id)

    def words(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The positions at which words begin in flat tokens [W], ascending; the first token of a row begins a word."""
        begins = self.begins[tokens]
        begins[1:] |= self.ends[tokens[:-1]]
        begins[offsets[:-1][np.diff(offsets) > 0]] = True
        return np.flatnonzero(begins)

    def mask(
        self, tokens: np.ndarray, offsets: np.ndarray, keys: np.ndarray, probability: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The model's input tokens and the labels that it predicts, `IGNORED` at other tokens; both [T] int64.

        In a row with n maskable tokens, whole words are chosen in random order up to a budget of max(1, round(n p))
        tokens; a word that exceeds the remaining budget is skipped. Of the chosen tokens 80 % become the mask token, 10
        % a random token, and 10 % stay.

        tokens [T] and offsets [n + 1]: flat rows without the tokenizer's frame ([CLS] ... [SEP]).
        keys: the keys of the random draws in each row [n] uint64; the result is a pure function of a row's key and
        tokens.
        """
        tokens = tokens.astype(np.int64)
        chosen = self._chosen(tokens, offsets, keys, probability)
        row = row_of(offsets, chosen)
        row_keys, position = keys[row], chosen - offsets[row]
        share = uniform(random_keys(_ROLE, row_keys, position))
        other = self.drawn[(random_keys(_TOKEN, row_keys, position) % np.uint64(len(self.drawn))).astype(np.int64)]
        seen, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        labels[chosen] = tokens[chosen]
        seen[chosen] = np.select(
            [share < MASKED_SHARE, share < MASKED_SHARE + RANDOM_SHARE], [self.mask_id, other], tokens[chosen]
        )
        return seen, labels

    def _chosen(self, tokens: np.ndarray, offsets: np.ndarray, keys: np.ndarray, probability: float) -> np.ndarray:
        """Positions of the tokens to predict in flat tokens, ascending."""
        first = self.words(tokens, offsets)
        size = np.diff(np.append(first, len(tokens)))
        allowed = ~self.special[tokens[first]]
        first, size = first[allowed], size[allowed]
        row = row_of(offsets, first)
        budget = np.maximum(1, np.rint(np.bincount(row, size, len(keys)) * probability)).astype(np.int64)
        taken = _fill(row, size, random_keys(_WORD, keys[row], first - offsets[row]), budget)
        first, size = first[taken], size[taken]
        return np.repeat(first - np.cumsum(size) + size, size) + np.arange(size.sum())


def _fill(row: np.ndarray, size: np.ndarray, key: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Which words are taken [W] bool: by ascending key, each word that fits the rest of its row's budget [n]."""
    order = np.lexsort((key, row))
    words = np.bincount(row, minlength=len(budget))
    turn = np.arange(len(row)) - np.repeat(np.cumsum(words) - words, words)  # position of each word in its row
    sizes = np.zeros((words.max(initial=0), len(budget)), np.int64)  # [turns, n], 0 = no word left
    sizes[turn, row[order]] = size[order]
    fits = np.zeros(sizes.shape, bool)
    room = budget.copy()
    for now, one in zip(sizes, fits, strict=True):  # all rows at once, one word each
        one[:] = (now > 0) & (now <= room)
        room -= now * one
        if not room.any():
            break
    taken = np.zeros(len(row), bool)
    taken[order] = fits[turn, row[order]]
    return taken


def row_of(offsets: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The row of each position of flat tokens."""
    return np.searchsorted(offsets, positions, side="right") - 1


# Where words begin


class _Piece(NamedTuple):
    text: str  # without markers
    begins: bool
    ends: bool


class _Scheme(NamedTuple):
    """How the pieces of a vocabulary mark word boundaries; without any marker each piece is a word."""

    beginning: str = ""  # on a piece that begins a word, in place of a space
    inside: str = ""  # on a piece that continues a word
    end: str = ""  # on a piece that ends a word
    spells_bytes: bool = False

    def read(self, piece: str) -> _Piece:
        """The text of a piece, and whether a word begins or ends with it.

        Where only spaces mark words, punctuation and Chinese and Japanese characters would form words too long to mask;
        each of them is a word of its own, as in BERT's tokenizer.
        """
        if self.inside:
            return _Piece(piece.removeprefix(self.inside), not piece.startswith(self.inside), False)
        if self.end:
            return _Piece(piece.removesuffix(self.end), False, piece.endswith(self.end))
        if not self.beginning:
            return _Piece(piece, True, True)
        read = _spelled(piece) if self.spells_bytes else piece.replace(self.beginning, " ").encode()
        rest = read.strip()
        alone = bool(rest) and all(byte < 0x80 and not chr(byte).isalnum() for byte in rest)
        begins = read[:1].isspace() or alone or b"\xe3" <= read[:1] <= b"\xe9"  # UTF-8 of U+3000 ... U+9FFF
        ends = alone or (not rest and not read.endswith(b" "))  # a line break; a lone space belongs to the next piece
        return _Piece(rest.decode(errors="ignore"), begins, ends)


def _scheme(tokenizer: Values) -> _Scheme | None:
    """How the vocabulary of a `tokenizer.json` marks word boundaries; None where it does not."""
    model = tokenizer["model"]
    parts = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    around = json.dumps(parts, ensure_ascii=False)
    if model["type"] == "WordLevel":
        return _Scheme()
    if model.get("continuing_subword_prefix"):
        return _Scheme(inside=model["continuing_subword_prefix"])
    if model.get("end_of_word_suffix"):
        return _Scheme(end=model["end_of_word_suffix"])
    if "ByteLevel" in around:
        return _Scheme(beginning="Ġ", spells_bytes=True)
    return _Scheme(beginning="▁") if "▁" in around else None


def _spelled(piece: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary spells."""
    return bytes(_BYTES[sign] for sign in piece if sign in _BYTES)


def _byte_signs() -> dict[str, int]:
    """GPT-2's signs for bytes: printable characters of Latin-1 stand for themselves, others for U+0100 onwards."""
    themselves = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in themselves else next(others)): byte for byte in range(0x100)}


_BYTES = _byte_signs()
