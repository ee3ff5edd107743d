"""Every family of backbones: its words are masked whole, all that takes part learns, and what comes out is used."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_ranks import FAMILIES, model, texts

from retrievo.data.sampling import random_keys
from retrievo.models.compute import ComputeOptions
from retrievo.models.condenser import HEAD_FILE, MaskedEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.vectors import encode_tokens
from retrievo.training.augment.masking import IGNORED
from retrievo.training.augment.special_tokens import Document
from retrievo.training.batch import Batch
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.objectives.masked_lm import CoCondenser, Condenser
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.simclr import SimClr
from retrievo.training.objectives.table import CoCondenserConfig, SimClrConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(trained: Objective, count: int = 5) -> Batch:
    rows = [
        trained.encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(count, shortest=16)
    ]
    keys = random_keys(0, np.arange(count))
    made: Batch = trained.collator()([Document(np.array(row), key) for row, key in zip(rows, keys, strict=True)])
    return made


def cocondenser(family: str) -> CoCondenser:
    config, encoder = CoCondenserConfig(max_length=24, mask_probability=0.3), model(family)
    Condenser(config, encoder)  # puts a head there
    return CoCondenser(config, encoder).train()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_words_are_masked_whole(family: str) -> None:
    trained = cocondenser(family)
    made = batch(trained, 40)
    tokens, labels = made.rows["span"].tokens, made.labels["span"]
    tokenizer, chosen = trained.encoder.tokenizer, labels != IGNORED
    original = torch.where(chosen, labels, tokens)
    words = 0
    for low, high in pairwise(made.rows["span"].offsets.tolist()):
        row = original[low + 1 : high - 1].tolist()
        pieces = tokenizer.convert_ids_to_tokens(row)
        begins = [at for at, piece in enumerate(pieces) if at == 0 or begins_a_word(family, piece, pieces[at - 1])]
        for start, stop in pairwise([*begins, len(row)]):
            of_word = chosen[low + 1 + start : low + 1 + stop]
            assert of_word.all() or not of_word.any()
            words += stop - start > 1 and bool(of_word.all())
    assert words > 20  # of several pieces, masked
    assert not chosen[tokens == tokenizer.cls_token_id].any()


def begins_a_word(family: str, piece: str, before: str) -> bool:
    """By what the tokenizer writes before a piece; punctuation stands alone."""
    if piece.lstrip("Ġ▁") == "." or before.lstrip("Ġ▁") == ".":
        return True
    return not piece.startswith("##") if family in ("bert", "distilbert") else piece[0] in "Ġ▁"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_that_takes_part_learns(family: str) -> None:
    trained = cocondenser(family)
    stats = gradient_step(trained, batch(trained), step=0, seed=0, chunk_tokens=60)
    parts = (stats["head_mlm_loss"], stats["late_mlm_loss"], stats["contrastive_loss"])
    assert stats["loss"].item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    without = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if "attn_norm" not in name] == []


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_head_gives_the_logits_of_the_masked_language_model(family: str) -> None:
    encoder = model(family).eval()
    ids = torch.randint(6, 30, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        hidden = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = encoder.language_model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(encoder.mlm_head(hidden), expected)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_crops_are_contrasted(family: str) -> None:
    whole = model(family)
    encoder = Encoder(whole.backbone, whole.tokenizer, dataclasses.replace(whole.spec, pooling="mean"))
    trained = SimClr(SimClrConfig(window=40), encoder).train()
    stats = gradient_step(trained, batch(trained), step=0, seed=0, chunk_tokens=60)
    assert torch.isfinite(stats["loss"])
    assert stats["gradient_norm"] > 0


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_was_pretrained_opens_everywhere_with_the_same_vectors(family: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    trained = cocondenser(family)
    trained.encoder.save(tmp_path)
    assert (tmp_path / HEAD_FILE).is_file()
    given = texts(6)
    ours = Encoder.load(tmp_path).eval()
    tokenized = ours.tokenization("document").tokenize(given)
    vectors = encode_tokens(ours, "document", tokenized.tokens, tokenized.offsets, ComputeOptions("float32"))
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True).encode(given)
    np.testing.assert_allclose(vectors, theirs, atol=1e-4)
    again = MaskedEncoder.load(tmp_path)
    assert again.condenser is not None
    for name, parameter in trained.encoder.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
