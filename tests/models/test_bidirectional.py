"""A decoder that attends both ways does so in every library that opens its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retrievo.models.bidirectional import attend_both_ways
from retrievo.models.compute import ComputeOptions
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_texts
from retrievo.support.errors import RetrievoError

TEXTS = ["test case data", "test", "data set for a test case"]


def load(folder: Path, **options: object) -> Encoder:
    return Encoder.load(folder, notify=lambda text: None, pooling="mean", **options).eval()


@torch.no_grad()
def first_token_changes(encoder: Encoder, role: str, mask: list[int]) -> bool:
    """Whether the first token's vector changes with the third token; the second row is padded as `mask` says."""
    rows = torch.tensor([[7, 8, 9], [7, 8, 10]])
    pads = torch.tensor([mask, mask])
    hidden = encoder.backbone_of(role)(input_ids=rows, attention_mask=pads).last_hidden_state
    return not torch.allclose(hidden[0, 0], hidden[1, 0], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_each_token_sees_later_ones_and_no_padding(tiny_decoder: Path, tied: bool) -> None:
    encoder = load(tiny_decoder, tied=tied)
    roles = ("query", "document")
    assert not any(first_token_changes(encoder, role, [1, 1, 1]) for role in roles)
    attend_both_ways(encoder)
    assert all(first_token_changes(encoder, role, [1, 1, 1]) for role in roles)
    assert not any(first_token_changes(encoder, role, [1, 1, 0]) for role in roles)


def test_the_folder_opens_with_the_same_vectors_here_and_in_sentence_transformers(
    tiny_decoder: Path, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    encoder = load(tiny_decoder)
    causal = encode_texts(encoder, "query", TEXTS, ComputeOptions("float32", chunk_tokens=64))
    attend_both_ways(encoder)
    both_ways = encode_texts(encoder, "query", TEXTS, ComputeOptions("float32", chunk_tokens=64))
    assert np.abs(both_ways - causal).max() > 1e-3
    encoder.save(tmp_path / "saved")
    again = encode_texts(Encoder.load(tmp_path / "saved"), "query", TEXTS, ComputeOptions("float32", chunk_tokens=64))
    np.testing.assert_array_equal(again, both_ways)
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode_query(TEXTS), both_ways, atol=1e-5)


def test_an_encoder_is_refused_for_it_attends_both_ways_already(tiny_model: Path) -> None:
    with pytest.raises(RetrievoError, match="sees later tokens already"):
        attend_both_ways(load(tiny_model))
