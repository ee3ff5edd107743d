"""Untrained models: `--model scratch:small` is a randomly initialized BERT with a vocabulary built from the corpus.

Names and their checks need only the standard library, because Config modules import this module.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.support import console
from retrievo.support.errors import RetrievoError, UsageError, did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from retrievo.data.corpus import Corpus

PREFIX = "scratch:"
POSITIONS = 512  # tokens, as BERT
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MOST_PIECES = 30_522  # as bert-base-uncased
FEWEST_TIMES = 20  # a new piece occurs at least this often; rarer pieces are too rare to learn a vector
MOST_CHARACTERS = 1 << 27  # of text from which a vocabulary is built; an eighth of it takes 6 s on one core
LONGEST_WORD = 100  # characters; to a BERT tokenizer longer ones are [UNK]
RAREST_LETTER = 1_000_000  # one in so many characters is kept; a word with a rarer one is [UNK]
_FORMAT = 1


@dataclass(frozen=True)
class ScratchSize:
    """Layers and width of a BERT; heads are 64 wide and the feed-forward layer 4 x the width, as in BERT."""

    layers: int
    width: int

    @property
    def heads(self) -> int:
        return self.width // 64


SCRATCH_SIZES = {
    "scratch:tiny": ScratchSize(layers=2, width=128),
    "scratch:small": ScratchSize(layers=4, width=256),
    "scratch:base": ScratchSize(layers=12, width=768),
}


def scratch_size(name: str) -> ScratchSize | None:
    """The size that a model name asks for; None for a name of another kind.

    Raises: UsageError for a size that is not in `SCRATCH_SIZES`.
    """
    if not name.startswith(PREFIX):
        return None
    if name not in SCRATCH_SIZES:
        raise UsageError("--model", f"found '{name}'", None, did_you_mean(name, SCRATCH_SIZES))
    return SCRATCH_SIZES[name]


def scratch_folder(name: str, corpora: Sequence[Corpus], seed: int) -> Path:
    """The model folder for a name in `SCRATCH_SIZES`, built once from these corpora and kept in the user's cache.

    Raises: UsageError for an unknown name; RetrievoError for corpora without words.
    """
    from retrievo.data.cache import cached

    scratch_size(name)
    key = "-".join([name.removeprefix(PREFIX), str(seed), *(corpus.input.fingerprint for corpus in corpora)])
    return cached(
        f"scratch-{_FORMAT}/{key}",
        lambda folder: make_scratch(name, _by_turns(corpora), folder, seed),
        [corpus.path for corpus in corpora],
    )


def _by_turns(corpora: Sequence[Corpus]) -> Iterator[str]:
    """Yields texts of all corpora in turn, a few thousand at a time, so that each contributes to the vocabulary."""
    for batches in zip_longest(*(corpus.batches() for corpus in corpora)):
        for _, texts in filter(None, batches):
            yield from texts


def make_scratch(name: str, texts: Iterable[str], folder: Path, seed: int) -> None:
    """Writes a Hugging Face folder: a random BertForMaskedLM, and a lower-casing WordPiece vocabulary of `texts`.

    The same name, texts and seed give the same bytes.

    Raises: UsageError for a name that is not in `SCRATCH_SIZES`; RetrievoError for texts without words.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    from retrievo.models.checkpoints import quiet

    size = scratch_size(name)
    if size is None:
        raise UsageError("--model", f"found '{name}'", None, did_you_mean(name, SCRATCH_SIZES))
    pieces = word_pieces(count_words(texts, BertTokenizer().backend_tokenizer))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=POSITIONS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = BertForMaskedLM(config)
    with quiet():
        model.save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=POSITIONS).save_pretrained(folder)
    console.note(f"{name}: {size.layers} layers x {size.width}, {len(pieces):,} word pieces of this corpus")


# ------------------------------------------------------------------------------------------------------ the vocabulary


def count_words(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """How often each word occurs, as `tokenizer` normalizes and splits texts; at most `MOST_CHARACTERS` are read.

    Words with letters that are rarer than one in `RAREST_LETTER`, and longer ones than `LONGEST_WORD`, are left out.

    Raises: RetrievoError for texts without words.
    """
    chunks: Counter[str] = Counter()  # cut at white space, which is quick; at punctuation once for each of them
    for text in _spread(texts, MOST_CHARACTERS):
        chunks.update(tokenizer.normalizer.normalize_str(text).split())
    words: Counter[str] = Counter()
    for chunk, times in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            words[word] += times
    if not words:
        raise RetrievoError("the corpus", "holds no words", "texts to build a vocabulary from")
    rare = _rare_letters(words)
    return {word: words[word] for word in sorted(words) if len(word) <= LONGEST_WORD and rare.isdisjoint(word)}


def _rare_letters(words: Mapping[str, int]) -> set[str]:
    letters: Counter[str] = Counter()
    for word, times in words.items():
        for letter in word:
            letters[letter] += times
    return {letter for letter, times in letters.items() if times * RAREST_LETTER < letters.total()}


def _spread(texts: Iterable[str], most: int) -> list[str]:
    """All texts, or every 2nd, 4th, ... of them, so that they have at most `most` characters together."""
    kept: list[str] = []
    size, stride = 0, 1
    for position, text in enumerate(texts):
        if position % stride:
            continue
        kept.append(text)
        size += len(text)
        while size > most and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
            size = sum(map(len, kept))
    return kept


def word_pieces(words: Mapping[str, int], most: int = MOST_PIECES, fewest: int = FEWEST_TIMES) -> list[str]:
    """A WordPiece vocabulary of counted words in order of ids: special tokens, letters, then pieces as they are merged.

    Repeatedly, the two neighboring pieces that occur together most often are merged (byte-pair encoding; Sennrich
    et al. 2016, algorithm 1), which is how the `tokenizers` library trains WordPiece too. Its trainer numbers the
    letters inside words in the random order of a hash map and breaks ties by these numbers, so that each training ends
    in another vocabulary; here they are sorted, and the smaller pair wins a tie.

    most:   pieces, special tokens and letters included. fewest: times that a pair must occur to become a piece.
    """
    merging = _Merging(words)
    while len(merging.pieces) < most and (pair := merging.best(fewest)):
        merging.merge(pair)
    return merging.pieces


class _Merging:
    """Words cut into pieces, with a count of each pair of neighbors that is kept while pairs become pieces.

    queue: (-count, pair) of every pair, with its present count or a higher earlier one.
    """

    def __init__(self, words: Mapping[str, int]):
        cut = [[word[0], *(f"##{letter}" for letter in word[1:])] for word in words]
        letters = sorted({piece for word in cut for piece in word}, key=lambda piece: (len(piece) > 1, piece))
        self.pieces = [*SPECIAL, *letters]
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.words = [[self.ids[piece] for piece in word] for word in cut]
        self.times = list(words.values())
        self.counts: Counter[tuple[int, int]] = Counter()
        self.places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # words that may hold a pair
        for number, word in enumerate(self.words):
            self._count(word, self.times[number])
            for pair in pairwise(word):
                self.places[pair].add(number)
        self.queue = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.queue)

    def _count(self, word: list[int], times: int) -> None:
        for pair in pairwise(word):
            self.counts[pair] += times

    def best(self, fewest: int) -> tuple[int, int] | None:
        """The pair that occurs most often; None where none occurs `fewest` times."""
        while self.queue:
            negative, pair = heapq.heappop(self.queue)
            if self.counts[pair] < fewest:
                continue
            if self.counts[pair] == -negative:
                return pair
            heapq.heappush(self.queue, (-self.counts[pair], pair))
        return None

    def merge(self, pair: tuple[int, int]) -> None:
        """Merges a pair into one piece in all words; the piece may exist already, from another pair."""
        piece = self.pieces[pair[0]] + self.pieces[pair[1]].removeprefix("##")
        new = self.ids.setdefault(piece, len(self.pieces))
        if new == len(self.pieces):
            self.pieces.append(piece)
        changed = set()
        for number in self.places.pop(pair):
            word = self.words[number]
            self._count(word, -self.times[number])
            self.words[number] = word = _joined(word, pair, new)
            self._count(word, self.times[number])
            for neighbors in pairwise(word):
                if new in neighbors:
                    self.places[neighbors].add(number)
                    changed.add(neighbors)
        for neighbors in changed:
            heapq.heappush(self.queue, (-self.counts[neighbors], neighbors))


def _joined(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """A word with each occurrence of a pair, from the left, replaced."""
    joined: list[int] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] = new
        else:
            joined.append(piece)
    return joined
