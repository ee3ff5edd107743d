"""Our model folder: opened here, in transformers and in sentence-transformers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from retrievo.support.errors import RetrievoError

CHOICES = [
    {"pooling": "cls"},
    {"pooling": "mean", "normalize": True, "similarity": "cosine"},
    {"pooling": "last", "query_prefix": "query: ", "document_prefix": "passage: "},
    {"pooling": "mean", "query_prefix": "query: ", "query_max_length": 8, "document_max_length": 20, "normalize": True},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
@pytest.mark.parametrize(("plain_folder", "tied"), [("bert", True), ("roberta", False)], indirect=["plain_folder"])
def test_our_folder_is_a_sentence_transformer_with_the_same_vectors(
    load, plain_folder, tmp_path, texts, choice, tied, assert_same_vectors
):
    encoder = load(plain_folder, tied=tied, **choice)
    if not tied:
        with torch.no_grad():
            encoder.query_backbone.embeddings.word_embeddings.weight.mul_(1.5)
    encoder.save(tmp_path / "ours")
    model = assert_same_vectors(encoder, tmp_path / "ours", texts)
    assert model.similarity_fn_name == encoder.spec.similarity


def test_each_half_of_an_untied_folder_opens_alone(
    load, notices, bert_folder, tmp_path, texts, vectors_of, open_theirs
):
    chosen = {"pooling": "mean", "normalize": True, "query_max_length": 8, "query_prefix": "query: "}
    encoder = load(bert_folder, tied=False, **chosen)
    with torch.no_grad():
        encoder.query_backbone.embeddings.word_embeddings.weight.mul_(1.5)
    encoder.save(tmp_path / "ours")
    for role in ("query", "document"):
        expected = vectors_of(encoder, role, texts)
        np.testing.assert_allclose(vectors_of(load(tmp_path / "ours" / role), role, texts), expected, atol=1e-6)
        model = open_theirs(tmp_path / "ours" / role)
        encode = {"query": model.encode_query, "document": model.encode_document}[role]
        np.testing.assert_allclose(encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_encoder_opens_as_it_was(load, notices, plain_folder, tmp_path, sentences, tied, vectors_of):
    chosen = {"pooling": "mean", "normalize": True, "query_prefix": "query: ", "query_max_length": 8, "tied": tied}
    before = load(plain_folder, **chosen)
    if not tied:
        with torch.no_grad():
            before.query_backbone.embeddings.word_embeddings.weight.mul_(1.5)
    before.save(tmp_path / "ours")
    notices.clear()
    after = load(tmp_path / "ours")
    assert after.spec == before.spec
    assert notices == []
    for role in ("query", "document"):
        assert after.tokenization(role).fingerprint == before.tokenization(role).fingerprint
        np.testing.assert_array_equal(vectors_of(after, role, sentences), vectors_of(before, role, sentences))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_weights_give_the_same_bytes(load, plain_folder, tmp_path, tied):
    encoder = load(plain_folder, tied=tied, normalize=True)
    encoder.save(tmp_path / "a")
    encoder.save(tmp_path / "b")
    load(tmp_path / "a").save(tmp_path / "c")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_a_saved_folder_names_no_path_of_this_machine(load, plain_folder, tmp_path):
    load(plain_folder).save(tmp_path / "ours")
    for name, content in files_of(tmp_path / "ours").items():
        assert str(tmp_path).encode() not in content, name
        assert str(plain_folder).encode() not in content, name


def test_saving_over_a_folder_keeps_what_is_not_ours_and_leaves_no_work_behind(load, bert_folder, tmp_path):
    encoder = load(bert_folder)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "negatives.parquet").write_bytes(b"kept")
    (tmp_path / "ours" / ".saving").mkdir()  # of a run that was killed
    (tmp_path / "ours" / ".saving" / "old.json").write_text("{}")
    encoder.save(tmp_path / "ours")
    files = files_of(tmp_path / "ours")
    assert files["negatives.parquet"] == b"kept"
    assert not any(".saving" in name or "old.json" in name for name in files)


def test_files_are_readable_by_others(load, bert_folder, tmp_path):
    load(bert_folder).save(tmp_path / "ours")
    modes = {path.stat().st_mode for path in (tmp_path / "ours").iterdir() if path.is_file()}
    assert len(modes) == 1


def test_an_untied_folder_can_not_be_opened_tied(load, bert_folder, tmp_path):
    load(bert_folder, tied=False).save(tmp_path / "ours")
    with pytest.raises(RetrievoError, match="one encoder per role"):
        load(tmp_path / "ours", tied=True)


def test_untied_tokenizers_must_agree(load, bert_folder, roberta_folder, tmp_path):
    load(bert_folder, tied=False).save(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(roberta_folder / name, tmp_path / "ours" / "query" / name)
    with pytest.raises(RetrievoError, match="another tokenizer than that of document/"):
        load(tmp_path / "ours")


def test_saving_while_a_tokenizer_is_set_to_pad_saves_it_bare(load, bert_folder, tmp_path, sentences):
    encoder = load(bert_folder)
    encoder.save(tmp_path / "before")
    encoder.tokenizer(sentences, truncation=True, max_length=5, padding="max_length")
    encoder.save(tmp_path / "after")
    assert files_of(tmp_path / "before") == files_of(tmp_path / "after")
