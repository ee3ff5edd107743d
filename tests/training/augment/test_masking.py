"""Whole-word masking: which tokens are one word, which words are chosen, what stands in their place."""

from __future__ import annotations

import functools
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    CharBPETokenizer,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    models,
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast

from retrievo.data.sampling import random_keys
from retrievo.support.errors import RetrievoError
from retrievo.training.augment.masking import IGNORED, Vocabulary

SENTENCES = [
    "Dense retrieval maps queries (and documents) to vectors; sparse retrieval counts words!",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Neural networks learn representations of text: inverted indexes count the words in it.",
    "Zürich is a city in Switzerland, near Lake Zürich.",
    "检索模型学习文本的表示。文本检索很有用。",
]
WORDS = sorted({word for sentence in SENTENCES[:4] for word in re.findall(r"\w+", sentence)})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one kind with a small vocabulary, so that most words have several pieces."""
    made = {
        "word pieces": BertWordPieceTokenizer,
        "bytes": ByteLevelBPETokenizer,
        "unigram": SentencePieceUnigramTokenizer,
        "sentence pieces": SentencePieceBPETokenizer,
        "word ends": CharBPETokenizer,
    }[kind]()
    options = {"unk_token": "[UNK]"} if kind == "unigram" else {"min_frequency": 2}
    made.train_from_iterator(SENTENCES, vocab_size=350, show_progress=False, special_tokens=SPECIAL, **options)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(made.to_str()), **NAMES)


KINDS = ["word pieces", "bytes", "unigram", "sentence pieces", "word ends"]


def flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([token for row in rows for token in row], np.int64), np.cumsum([0, *map(len, rows)])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.sampled_from([*WORDS, ",", ".", "(", ")", "!"]), min_size=1, max_size=12), data=st.data())
def test_a_word_is_a_run_of_letters_or_a_punctuation_mark(kind: str, parts: list[str], data: st.DataObject) -> None:
    gaps = [data.draw(st.sampled_from(["", " "])) if not (a + b).isalnum() else " " for a, b in pairwise(parts)]
    text = "".join(part + gap for part, gap in zip(parts, [*gaps, ""], strict=True))
    encoded = tokenizer(kind).backend_tokenizer.encode(text)
    starts = {match.start() for match in re.finditer(r"\w+|[^\w\s]", text)}
    expected = [
        index
        for index, (start, end) in enumerate(encoded.offsets)
        if end - len(text[start:end].lstrip()) in starts or not text[start:end].strip()
    ]
    found = Vocabulary.of(tokenizer(kind)).words(*flat([encoded.ids])).tolist()
    for begins in (found, expected):  # a mark of the space alone begins the word that the next piece goes on with
        begins[:] = sorted({begin + (encoded.tokens[begin] in "▁Ġ") for begin in begins})
    assert found == expected, encoded.tokens


@pytest.mark.parametrize("kind", ["bytes", "unigram", "sentence pieces"])
def test_scripts_without_spaces_are_not_one_long_word(kind: str) -> None:
    vocabulary, rows = Vocabulary.of(tokenizer(kind)), tokenizer(kind)(SENTENCES[4:], add_special_tokens=False)
    tokens, offsets = flat(rows["input_ids"])
    assert len(vocabulary.words(tokens, offsets)) >= 8
    _, labels = vocabulary.mask(tokens, offsets, np.arange(1, dtype=np.uint64), 0.3)
    assert (labels != IGNORED).any()


def test_a_line_break_ends_a_word() -> None:
    made = tokenizer("bytes")
    pieces = made.backend_tokenizer.encode("the dog\nthe fox").tokens
    tokens, offsets = flat([made.convert_tokens_to_ids(pieces)])
    begins = Vocabulary.of(made).words(tokens, offsets)
    assert [pieces[begin][0] for begin in begins] == ["t", "Ġ", "Ċ", "t", "Ġ"]


def test_each_row_begins_a_word_and_special_tokens_are_words_of_their_own() -> None:
    made = tokenizer("word pieces")
    inside = next(number for piece, number in made.get_vocab().items() if piece.startswith("##"))
    tokens, offsets = flat([[inside, inside], [inside, made.unk_token_id, inside], [], [inside]])
    assert Vocabulary.of(made).words(tokens, offsets).tolist() == [0, 2, 3, 4, 5]


def test_without_whole_words_each_token_is_a_word() -> None:
    vocabulary = Vocabulary.of(tokenizer("word pieces"), whole_word=False)
    tokens, offsets = flat([list(range(5, 60))])
    assert len(vocabulary.words(tokens, offsets)) == 55


def test_words_of_a_word_level_vocabulary_are_its_tokens() -> None:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*SPECIAL, "a", "b"])}, "[UNK]"))
    vocabulary = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=made, **NAMES))
    assert vocabulary.words(*flat([[5, 6, 6]])).tolist() == [0, 1, 2]
    assert vocabulary.drawn.tolist() == [5, 6]


def test_a_tokenizer_that_does_not_say_where_words_begin_masks_tokens_only_when_asked_to() -> None:
    made = Tokenizer(models.BPE({word: index for index, word in enumerate([*SPECIAL, "a", "b"])}, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    unmarked = PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)
    with pytest.raises(RetrievoError, match="--whole-word: a tokenizer whose pieces do not say where words begin"):
        Vocabulary.of(unmarked)
    assert len(Vocabulary.of(unmarked, whole_word=False).words(*flat([[5, 6, 6]]))) == 3


def test_a_tokenizer_without_mask_token_is_refused() -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"))
    with pytest.raises(RetrievoError, match="--model: a tokenizer without mask token"):
        Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))


def test_a_vocabulary_crosses_process_borders() -> None:
    vocabulary = Vocabulary.of(tokenizer("bytes"))
    again = pickle.loads(pickle.dumps(vocabulary))
    assert np.array_equal(again.begins, vocabulary.begins)


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_ends_are_found_in_every_vocabulary(kind: str) -> None:
    vocabulary = Vocabulary.of(tokenizer(kind))
    tokens = np.array(tokenizer(kind)("the dog. again!", add_special_tokens=False)["input_ids"])
    assert vocabulary.sentence[tokens].sum() == 2
    assert vocabulary.sentence[tokens[-1]]


# ------------------------------------------------------------------------------ laws, on vocabularies made of numbers


SIZE = 40


def numbered(seed: int) -> Vocabulary:
    """40 tokens: 0 ... 4 are special, 4 is the mask; of the others two thirds begin a word, a few end one."""
    random = np.random.default_rng(seed)
    begins, ends, special = random.random(SIZE) < 0.66, random.random(SIZE) < 0.1, np.arange(SIZE) < 5
    return Vocabulary(begins | special, ends | special, special, np.zeros(SIZE, bool), np.arange(5, SIZE), 4)


rows_of_tokens = st.lists(
    st.lists(st.sampled_from([0, 1, *range(5, SIZE)]), min_size=0, max_size=60), min_size=1, max_size=6
)
probabilities = st.floats(0.01, 1.0)


def word_parts(vocabulary: Vocabulary, tokens: np.ndarray, offsets: np.ndarray) -> list[list[range]]:
    """The words of each row, as ranges of flat positions."""
    begins = [*vocabulary.words(tokens, offsets).tolist(), len(tokens)]
    words = [range(*bounds) for bounds in pairwise(begins)]
    return [[word for word in words if low <= word.start < high] for low, high in pairwise(offsets)]


@settings(max_examples=200, deadline=None)
@given(rows=rows_of_tokens, probability=probabilities, seed=st.integers(0, 1000))
def test_whole_words_are_chosen_as_long_as_they_fit_in_the_budget(
    rows: list[list[int]], probability: float, seed: int
) -> None:
    vocabulary = numbered(seed)
    tokens, offsets = flat(rows)
    seen, labels = vocabulary.mask(tokens, offsets, random_keys(seed, np.arange(len(rows))), probability)
    chosen = labels != IGNORED
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(seen[~chosen], tokens[~chosen])
    assert not vocabulary.special[tokens[chosen]].any()
    assert not vocabulary.special[seen[chosen & (seen != 4)]].any()
    for row, words in enumerate(word_parts(vocabulary, tokens, offsets)):
        allowed = [word for word in words if not vocabulary.special[tokens[word.start]]]
        budget = max(1, round(sum(map(len, allowed)) * probability))
        assert all(len({bool(value) for value in chosen[word.start : word.stop]}) == 1 for word in words)
        left = budget - chosen[offsets[row] : offsets[row + 1]].sum()
        assert left >= 0
        assert all(chosen[word.start] or len(word) > left for word in allowed)  # what fits is taken


@settings(max_examples=100, deadline=None)
@given(rows=rows_of_tokens, probability=probabilities, seed=st.integers(0, 1000))
def test_masks_are_a_pure_function_of_key_and_row(rows: list[list[int]], probability: float, seed: int) -> None:
    vocabulary = numbered(seed)
    keys = random_keys(seed, np.arange(len(rows)))
    together = vocabulary.mask(*flat(rows), keys, probability)
    apart = [vocabulary.mask(*flat([row]), keys[index : index + 1], probability) for index, row in enumerate(rows)]
    for found, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert np.array_equal(found, np.concatenate(parts))


def many(rows: int = 4000, words: int = 20) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """Rows of the single-token words 5 ... 24."""
    vocabulary = numbered(0)
    vocabulary.begins[:] = True
    return vocabulary, *flat([list(range(5, 5 + words))] * rows)


def test_80_of_100_become_the_mask_10_any_token_and_10_stay() -> None:
    vocabulary, tokens, offsets = many()
    seen, labels = vocabulary.mask(tokens, offsets, random_keys(1, np.arange(4000)), 0.15)
    chosen = labels != IGNORED
    assert chosen.sum() == 4000 * 3
    masked, stayed = (seen == 4)[chosen], (seen == tokens)[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.015)
    assert stayed.mean() == pytest.approx(0.1 + 0.1 / 35, abs=0.012)  # one in 35 tokens is drawn in its own place
    drawn = seen[chosen][~masked & ~stayed]
    counts = np.bincount(drawn, minlength=SIZE)
    assert not counts[:5].any()
    assert counts[5:].min() > 0.5 * len(drawn) / 35
    assert counts[5:].max() < 1.6 * len(drawn) / 35


def test_each_word_is_chosen_equally_often_and_keys_change_the_choice() -> None:
    vocabulary, tokens, offsets = many()
    _, labels = vocabulary.mask(tokens, offsets, random_keys(2, np.arange(4000)), 0.15)
    share = (labels != IGNORED).reshape(4000, 20).mean(0)
    assert share == pytest.approx(0.15, abs=0.03)
    assert len({row.tobytes() for row in labels.reshape(4000, 20)}) > 0.9 * 1140  # of 20 choose 3


def test_rows_without_tokens_and_no_rows_at_all_are_fine() -> None:
    vocabulary = numbered(0)
    for rows in ([], [[]], [[0, 0]], [[], [7], []]):
        seen, labels = vocabulary.mask(*flat(rows), np.arange(len(rows), dtype=np.uint64), 0.15)
        assert len(seen) == len(labels) == sum(map(len, rows))
        assert (labels != IGNORED).sum() == (1 if [7] in rows else 0)
