"""Cross-encoders: pairs become the tokens that transformers makes of them, and scores are sentence-transformers'."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrievo.models.cross_encoder import CrossEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.pairs import kept_lengths
from retrievo.support.errors import RetrievoError

QUERIES = ["what maps queries to vectors?", "a short one", "", "Zürich " * 30]


def pairs_of(texts: list[str]) -> list[tuple[str, str]]:
    return [(query, text) for query in QUERIES for text in texts]


def scores_of(model: CrossEncoder, pairs: list[tuple[str, str]], **options: int) -> np.ndarray:
    tokenization = model.tokenization
    queries, documents = (
        tokenization.query.tokenize([q for q, _ in pairs]),
        tokenization.document.tokenize([d for _, d in pairs]),
    )

    def row(made, place):
        return made.tokens[made.offsets[place] : made.offsets[place + 1]]

    tokens, offsets = tokenization.rows([(row(queries, n), row(documents, n)) for n in range(len(pairs))])
    return model.scores(tokens, offsets, **{"chunk_tokens": 300, **options})


@pytest.fixture(params=["bert", "roberta"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A cross-encoder with a fresh head, 40 tokens a pair."""
    model = CrossEncoder.load(request.getfixturevalue(f"{request.param}_folder"), train=True, max_length=40)
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_scores_are_those_of_sentence_transformers(saved: Path, texts: list[str]) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    pairs = pairs_of(texts)
    theirs = library.CrossEncoder(str(saved), device="cpu", local_files_only=True).predict(pairs)
    ours = scores_of(CrossEncoder.load(saved), pairs)
    assert np.ptp(ours) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_folder_of_sentence_transformers_means_the_same_here(saved: Path, texts: list[str], tmp_path: Path) -> None:
    """Its default is a sigmoid, which it keeps in its own files; truncation is the tokenizer's."""
    library = pytest.importorskip("sentence_transformers", minversion="6")
    theirs = library.CrossEncoder(str(saved), device="cpu", local_files_only=True, activation_fn=torch.nn.Sigmoid())
    theirs.save_pretrained(str(tmp_path / "theirs"))
    expected = theirs.predict(pairs_of(texts))
    ours = CrossEncoder.load(tmp_path / "theirs")
    assert (ours.spec.activation, ours.spec.max_length) == ("Sigmoid", 40)
    np.testing.assert_allclose(scores_of(ours, pairs_of(texts)), expected, atol=1e-5)


def test_scores_do_not_depend_on_the_chunks(saved: Path, texts: list[str]) -> None:
    model = CrossEncoder.load(saved)
    one_by_one = scores_of(model, pairs_of(texts), chunk_tokens=1)
    np.testing.assert_allclose(scores_of(model, pairs_of(texts), chunk_tokens=4096), one_by_one, atol=1e-5)


def test_a_fresh_head_is_the_same_every_time_and_the_same_weights_give_the_same_bytes(
    bert_folder: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        CrossEncoder.load(bert_folder, train=True).save(tmp_path / name, {"steps": 0})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_what_is_no_cross_encoder_is_refused(bert_folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match="is no cross-encoder: its weights lack classifier"):
        CrossEncoder.load(bert_folder)
    with pytest.raises(RetrievoError, match="is a cross-encoder; expected a model that gives vectors"):
        Encoder.load(saved)
    with pytest.raises(RetrievoError, match="no checkpoint"):
        CrossEncoder.load(tmp_path)
    with pytest.raises(RetrievoError, match="--max-length: 65 tokens; expected 5 to 64"):
        CrossEncoder.load(bert_folder, train=True, max_length=65)
    config = json.loads((saved / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(RetrievoError, match="it gives 2 scores for a pair"):
        CrossEncoder.load(saved)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 25))
def test_truncation_is_that_of_the_tokenizers_library(first: int, second: int, room: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "[CLS]": 3, "[SEP]": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    tokenizer.enable_truncation(room + 3, strategy="longest_first")
    ids = tokenizer.encode("a " * first, "b " * second).ids
    assert kept_lengths(first, second, room) == (ids.count(1), ids.count(2))


def test_a_tokenization_travels_to_workers(saved: Path) -> None:
    tokenization = CrossEncoder.load(saved).tokenization
    there = pickle.loads(pickle.dumps(tokenization))
    query, document = np.array([7, 8]), np.arange(5, 60)
    assert np.array_equal(there.row(query, document), tokenization.row(query, document))
    assert len(there.row(query, document)) == 40
