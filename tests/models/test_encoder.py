"""The encoder: roles, pooling, opening, saving."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from retrievo.models.encoder import Encoder, position_limit
from retrievo.support.errors import RetrievoError, UsageError


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", False), ("mean", True), ("last", False)])
def test_vectors_are_those_of_transformers_pooled(load, plain_folder, sentences, pooling, normalize, vectors_of):
    from transformers import AutoModel, AutoTokenizer

    encoder = load(plain_folder, pooling=pooling, normalize=normalize)
    model, tokenizer = AutoModel.from_pretrained(plain_folder).eval(), AutoTokenizer.from_pretrained(plain_folder)
    for text, vector in zip(sentences, vectors_of(encoder, "query", sentences), strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]  # [L, D]
        expected = {"cls": hidden[0], "mean": hidden.mean(dim=0), "last": hidden[-1]}[pooling]
        expected = expected / expected.norm() if normalize else expected
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_roles_differ_by_prefix_and_length_only_when_tied(load, bert_folder, sentences):
    encoder = load(bert_folder, pooling="mean", query_prefix="retrieval ", query_max_length=12)
    tokenized = encoder.tokenization("query").tokenize(sentences)
    assert np.diff(tokenized.offsets).max() == 12
    as_document = encoder.tokenization("document").tokenize(["retrieval A short one"])
    as_query = encoder.tokenization("query").tokenize(["A short one"])
    assert as_query.tokens.tolist() == as_document.tokens.tolist()
    assert encoder.backbone_of("query") is encoder.backbone_of("document")


def test_only_documents_have_titles(load, bert_folder):
    encoder = load(bert_folder, title_template="{title}: {text}")
    assert encoder.tokenization("query").title_template is None
    assert encoder.tokenization("document").title_template == "{title}: {text}"


def test_an_unknown_role_is_refused(load, bert_folder):
    with pytest.raises(ValueError, match="known are query, document"):
        load(bert_folder).encode("passage", torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64))


def test_untied_roles_start_equal_and_learn_apart(load, bert_folder, sentences, vectors_of):
    encoder = load(bert_folder, tied=False)
    np.testing.assert_array_equal(vectors_of(encoder, "query", sentences), vectors_of(encoder, "document", sentences))
    ids = torch.ones(2, 3, dtype=torch.int64)
    encoder.encode("query", ids, ids).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(parameter.grad is not None for parameter in encoder.query_backbone.parameters())


def test_every_parameter_of_a_tied_encoder_learns(load, plain_folder):
    """No pooler is opened: a parameter that no vector depends on would be carried through training for nothing."""
    encoder = load(plain_folder, pooling="mean")
    ids = torch.full((2, 3), 5)
    encoder.encode("document", ids, torch.ones_like(ids)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_half_precision_checkpoint_opens_in_float32(load, tmp_path, bert_folder):
    from transformers import AutoModel

    shutil.copytree(bert_folder, tmp_path / "half")
    AutoModel.from_pretrained(bert_folder).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in load(tmp_path / "half").parameters()} == {torch.float32}


def test_a_masked_language_model_opens_as_its_backbone(load, masked_bert_folder, sentences):
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(masked_bert_folder).eval()
    encoder = load(masked_bert_folder)
    for ours, theirs in zip(encoder.backbone.parameters(), model.base_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_guessed_pooling_is_told_and_chosen_pooling_is_not(load, notices, bert_folder):
    assert load(bert_folder).spec.pooling == "cls"
    assert len(notices) == 1
    assert "'cls' is assumed" in notices[0]
    assert str(bert_folder) in notices[0]
    notices.clear()
    assert load(bert_folder, pooling="mean").spec.pooling == "mean"
    assert notices == []


def test_a_guess_is_printed_unless_somebody_listens(bert_folder, said):
    Encoder.load(bert_folder)
    assert "'cls' is assumed" in said().replace("\n", " ")


def test_an_override_of_none_is_no_override(load, bert_folder):
    assert load(bert_folder, pooling="mean", normalize=None, query_prefix=None).spec.normalize is False


def test_a_model_used_as_stated_refuses_another_pooling_and_a_model_that_is_made_takes_it(load, bert_folder, tmp_path):
    load(bert_folder, pooling="cls").save(tmp_path / "ours")
    with pytest.raises(UsageError) as error:
        load(tmp_path / "ours", as_stated=True, pooling="mean")
    expected = "--pooling: found 'mean'; expected 'cls', as the model folder says it; leave --pooling out"
    assert str(error.value) == expected
    assert load(tmp_path / "ours", as_stated=True, pooling="cls").spec == load(tmp_path / "ours").spec
    assert load(tmp_path / "ours", as_stated=True, pooling=None).spec.pooling == "cls"
    assert load(tmp_path / "ours", pooling="mean").spec.pooling == "mean"


def test_as_stated_a_silent_folder_takes_the_pooling_that_is_given(load, bert_folder, notices):
    assert load(bert_folder, as_stated=True, pooling="mean").spec.pooling == "mean"
    assert notices == []


def test_a_local_folder_never_reaches_the_network(load, no_network, plain_folder, tmp_path):
    load(plain_folder).save(tmp_path / "ours")
    load(tmp_path / "ours")


def test_lengths_follow_the_positions_of_the_backbone(load, bert_folder, roberta_folder):
    assert position_limit(load(bert_folder).backbone) == 64
    assert position_limit(load(roberta_folder).backbone) == 64  # 66 positions, the first two unused
    assert load(roberta_folder).spec.document_max_length == 64


@pytest.mark.parametrize("length", [2, 65])
def test_a_length_without_positions_or_room_is_refused(load, plain_folder, length):
    with pytest.raises(RetrievoError, match=rf"--query-max-length: {length} tokens; expected 3 to 64"):
        load(plain_folder, query_max_length=length)


def test_the_longest_text_fits(load, plain_folder, vectors_of):
    encoder = load(plain_folder)
    vectors = vectors_of(encoder, "document", ["retrieval of documents " * 200])
    assert vectors.shape == (1, encoder.dim)
    assert np.isfinite(vectors).all()
