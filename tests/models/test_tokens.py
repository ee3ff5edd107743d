"""Texts to token ids."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.models.tokens import Tokenization

KINDS = ["word pieces", "byte pieces"]


@pytest.fixture(scope="module")
def tokenization(tokenizers):
    """Makes a Tokenization of 64 tokens, with changes."""

    def make(name="word pieces", **changes):
        json = tokenizers[name].backend_tokenizer.to_str()
        return Tokenization(**{"tokenizer_json": json, "max_length": 64, **changes})

    return make


def lists(tokenized):
    return [
        tokenized.tokens[start:end].tolist()
        for start, end in zip(tokenized.offsets[:-1], tokenized.offsets[1:], strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40) | st.text("abdegilnorstu ", max_size=60), min_size=1, max_size=6),
    max_length=st.integers(3, 40),
    name=st.sampled_from(KINDS),
)
def test_tokens_are_those_of_transformers(tokenization, tokenizers, texts, max_length, name):
    ours = tokenization(name, max_length=max_length).tokenize(texts)
    whole = tokenizers[name](texts)["input_ids"]
    assert lists(ours) == tokenizers[name](texts, truncation=True, max_length=max_length)["input_ids"]
    assert ours.truncated == sum(len(ids) > max_length for ids in whole)


@pytest.mark.parametrize("name", KINDS)
def test_without_special_tokens_and_limit_the_bare_text_remains(tokenization, tokenizers, sentences, name):
    ours = tokenization(name, max_length=None, special_tokens=False).tokenize(sentences)
    assert lists(ours) == tokenizers[name](sentences, add_special_tokens=False)["input_ids"]
    assert ours.truncated == 0


def test_without_special_tokens_the_limit_counts_the_text_alone(tokenization, tokenizers, sentences):
    assert lists(tokenization(max_length=5, special_tokens=False).tokenize(sentences)) == [
        ids[:5] for ids in tokenizers["word pieces"](sentences, add_special_tokens=False)["input_ids"]
    ]


def test_no_texts_give_no_tokens(tokenization):
    tokenized = tokenization().tokenize([])
    assert tokenized.tokens.tolist() == []
    assert tokenized.offsets.tolist() == [0]
    assert tokenized.truncated == 0


def test_titles_and_prefix_make_one_text(tokenization):
    documents = tokenization(prefix="passage: ", title_template="{title} {text}")
    ours = documents.tokenize(["a city in Switzerland", " spaces ", "{braces}"], ["Zürich", None, ""])
    texts = ["passage: Zürich a city in Switzerland", "passage: spaces", "passage: {braces}"]
    assert lists(ours) == lists(tokenization().tokenize(texts))


def test_a_table_without_titles_is_a_table_of_empty_titles(tokenization, sentences):
    documents = tokenization("byte pieces", title_template="{title} {text}")
    assert lists(documents.tokenize(sentences)) == lists(documents.tokenize(sentences, [""] * len(sentences)))


def test_titles_without_a_template_are_refused(tokenization):
    with pytest.raises(ValueError, match="no title template"):
        tokenization().tokenize(["a"], ["b"])


def test_a_pickled_tokenization_gives_the_same_tokens_and_fingerprint(tokenization, sentences):
    before = tokenization(prefix="query: ")
    first = before.tokenize(sentences)
    after = pickle.loads(pickle.dumps(before))
    assert after == before
    assert after.fingerprint == before.fingerprint
    assert lists(after.tokenize(sentences)) == lists(first)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 63},
        {"max_length": None},
        {"prefix": "query: "},
        {"title_template": "{text}"},
        {"special_tokens": False},
        {"name": "byte pieces"},
    ],
)
def test_the_fingerprint_tells_every_change_of_the_tokens(tokenization, change):
    assert tokenization(**change).fingerprint != tokenization().fingerprint


def test_truncation_and_padding_left_in_a_tokenizer_do_not_count(tokenization, tokenizers, sentences):
    used = copy.deepcopy(tokenizers["word pieces"])
    used(sentences, truncation=True, max_length=5, padding="max_length")  # leaves both switched on
    assert used.backend_tokenizer.truncation is not None
    assert used.backend_tokenizer.padding is not None
    ours = tokenization(tokenizer_json=used.backend_tokenizer.to_str())
    assert ours.fingerprint == tokenization().fingerprint
    assert lists(ours.tokenize(sentences)) == lists(tokenization().tokenize(sentences))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_tokenizes_the_same(tokenization, sentences, method):
    work = tokenization()
    expected = lists(work.tokenize(sentences * 20))[: len(sentences)]  # the parallel pool has run before the fork
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert lists(pool.apply_async(work.tokenize, (sentences,)).get(timeout=60)) == expected
