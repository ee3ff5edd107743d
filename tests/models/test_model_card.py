"""The model card: its code runs and tells the truth."""

from __future__ import annotations

import re

import numpy as np
import pytest

from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.encoder_spec import EncoderSpec
from retrievo.models.model_card import model_card
from retrievo.models.vectors import encode_tokens

QUERY = "what is dense retrieval?"


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize(("pooling", "tied"), [("cls", True), ("mean", True), ("last", True), ("mean", False)])
def test_the_code_of_the_card_gives_our_vectors(bert_folder, tmp_path, pooling, tied):
    pytest.importorskip("sentence_transformers", minversion="6")
    chosen = {"pooling": pooling, "normalize": pooling == "mean", "query_prefix": "query: ", "query_max_length": 9}
    encoder = Encoder.load(bert_folder, tied=tied, **chosen).eval()
    encoder.save(tmp_path / "ours")
    tokenized = encoder.tokenization("query").tokenize([QUERY])
    expected = encode_tokens(
        encoder, "query", tokenized.tokens, tokenized.offsets, ComputeOptions("float32", chunk_tokens=64)
    )
    theirs, plain = ({}, {})
    for code, names in zip(code_blocks((tmp_path / "ours" / "README.md").read_text()), (theirs, plain), strict=True):
        exec(code.replace("FOLDER", str(tmp_path / "ours")), names)
    np.testing.assert_allclose(theirs["queries"], expected, atol=1e-5)
    np.testing.assert_allclose(plain["vectors"].numpy(), expected, atol=1e-5)


def test_the_card_states_what_the_folder_states():
    spec = EncoderSpec(pooling="last", query_prefix="query: ", query_max_length=31, document_max_length=131)
    card = model_card(spec, 48, {})
    for text in ("48 numbers", "last (the last token)", "31 tokens", "131 tokens", "'query: '", "{title} {text}"):
        assert text in card
    assert "## Training" not in card


def test_facts_of_training_become_a_table():
    card = model_card(EncoderSpec(), 8, {"corpus": "msmarco.parquet", "mrr@10": 0.38})
    assert "## Training" in card
    assert "| corpus | msmarco.parquet |" in card
    assert "| mrr@10 | 0.38 |" in card


def test_the_card_opens_with_what_the_hub_reads():
    import yaml

    head = model_card(EncoderSpec(), 8, {}).split("---\n")[1]
    assert yaml.safe_load(head)["library_name"] == "sentence-transformers"
