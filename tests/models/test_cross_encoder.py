"""Cross-encoders: pairs become the tokens that transformers makes of them, and scores are sentence-transformers'."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrievo.models.compute import ComputeOptions
from retrievo.models.cross_encoder import CrossEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.pairs import kept_lengths
from retrievo.support.errors import RetrievoError

QUERIES = ["what maps queries to vectors?", "a short one", "", "Zürich " * 30]


def pairs_of(texts: list[str]) -> list[tuple[str, str]]:
    return [(query, text) for query in QUERIES for text in texts]


def scores_of(model: CrossEncoder, pairs: list[tuple[str, str]], chunk_tokens: int = 300) -> np.ndarray:
    tokenization = model.tokenization
    queries, documents = (
        tokenization.query.tokenize([q for q, _ in pairs]),
        tokenization.document.tokenize([d for _, d in pairs]),
    )

    def row(made, place):
        return made.tokens[made.offsets[place] : made.offsets[place + 1]]

    tokens, offsets = tokenization.rows([(row(queries, n), row(documents, n)) for n in range(len(pairs))])
    return model.scores(tokens, offsets, ComputeOptions("float32", chunk_tokens=chunk_tokens))


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
    with pytest.raises(RetrievoError, match=r"no model; expected cross-encoder.json"):
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


def theirs_of(folder: Path, **settings: object) -> object:
    """sentence-transformers' cross-encoder of a folder."""
    library = pytest.importorskip("sentence_transformers", minversion="6")
    return library.CrossEncoder(str(folder), device="cpu", local_files_only=True, **settings)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **values}))


@pytest.fixture
def their_folder(saved: Path, tmp_path: Path) -> Path:
    """A cross-encoder as sentence-transformers 6 writes it, with a prompt that it puts before the first text."""
    model = theirs_of(saved, prompts={"q": "Query about: ", "other": "no"}, default_prompt_name="q")
    model.save_pretrained(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def test_settings_of_their_folders_count_as_they_do_there(their_folder: Path, texts: list[str], tmp_path: Path) -> None:
    """A default prompt, a length and lower-casing of their own; all of them stay when the model is saved here."""
    change(their_folder / "sentence_bert_config.json", max_seq_length=24, do_lower_case=True)
    pairs = [(query, text.upper()) for query, text in pairs_of(texts)]
    expected = theirs_of(their_folder).predict(pairs)
    ours = CrossEncoder.load(their_folder)
    assert (ours.spec.query_prefix, ours.spec.max_length) == ("Query about: ", 24)
    np.testing.assert_allclose(scores_of(ours, pairs), expected, atol=1e-5)
    plain = CrossEncoder.load(their_folder, query_prefix="")
    assert np.abs(scores_of(plain, pairs) - expected).max() > 1e-3
    ours.save(tmp_path / "ours")
    assert CrossEncoder.load(tmp_path / "ours").spec == ours.spec
    np.testing.assert_allclose(scores_of(CrossEncoder.load(tmp_path / "ours"), pairs), expected, atol=1e-5)
    np.testing.assert_allclose(theirs_of(tmp_path / "ours").predict(pairs), expected, atol=1e-5)


def test_a_prompt_that_is_no_default_is_none_of_theirs(their_folder: Path, texts: list[str]) -> None:
    change(their_folder / "config_sentence_transformers.json", default_prompt_name=None)
    ours = CrossEncoder.load(their_folder)
    assert ours.spec.query_prefix == ""
    np.testing.assert_allclose(
        scores_of(ours, pairs_of(texts)), theirs_of(their_folder).predict(pairs_of(texts)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "a chat or generation model"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs = "),
        ("sentence_bert_config.json", {"config_kwargs": {"is_decoder": True}}, "config_kwargs with is_decoder"),
        ("sentence_bert_config.json", {"processor_kwargs": {"do_lower_case": True}}, "processor_kwargs with do_lower"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Tanh"}, r"the activation torch\.nn\.Tanh"),
        ("config_sentence_transformers.json", {"activation_fn": "own.Sigmoid"}, r"the activation own\.Sigmoid"),
        ("config_sentence_transformers.json", {"default_prompt_name": "absent"}, "default_prompt_name = 'absent'"),
    ],
)
@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_settings_that_can_not_be_followed_are_refused(
    their_folder: Path, file: str, values: dict, message: str
) -> None:
    change(their_folder / file, **values)
    with pytest.raises(RetrievoError, match=message):
        CrossEncoder.load(their_folder)


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_modules_that_make_another_score_are_refused_by_name(their_folder: Path) -> None:
    modules = json.loads((their_folder / "modules.json").read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.x.LogitScore"})
    (their_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RetrievoError, match="it has the modules Transformer, LogitScore; expected Transformer"):
        CrossEncoder.load(their_folder)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_tokens_without_a_vector_are_refused_before_anything_is_computed(saved: Path, train: bool) -> None:
    path = saved / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].append({**values["added_tokens"][0], "id": 9999, "content": "[far]"})
    path.write_text(json.dumps(values))
    with pytest.raises(RetrievoError, match="tokens in the tokenizer; expected at most the"):
        CrossEncoder.load(saved, train=train)


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_training_starts_from_the_checkpoint_of_an_encoder_in_a_folder_below(
    saved: Path, bert_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    (folder / "1_Pooling").mkdir(parents=True)
    shutil.copytree(bert_folder, folder / "0_Transformer")
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{path[2:]}"}
        for n, path in enumerate(("0_Transformer", "1_Pooling"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    change(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=20, do_lower_case=False)
    model = CrossEncoder.load(folder, train=True)
    assert (model.spec.max_length, model.spec.activation) == (20, "Identity")
    with pytest.raises(RetrievoError, match="is no cross-encoder: it has the modules Transformer, Pooling"):
        CrossEncoder.load(folder)


def test_a_decoder_scores_a_pair_whatever_shares_its_chunk(tmp_path: Path, tokenizers: dict, texts: list[str]) -> None:
    """Its head takes the last token that is no padding; decoders are published without a padding token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = len(tokenizers["word pieces"])
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=64, num_labels=1, pad_token_id=None, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizers["word pieces"].save_pretrained(tmp_path)
    model, pairs = CrossEncoder.load(tmp_path), pairs_of(texts)
    one_by_one = scores_of(model, pairs, chunk_tokens=1)
    assert np.ptp(one_by_one) > 1e-3
    np.testing.assert_allclose(scores_of(model, pairs, chunk_tokens=4096), one_by_one, atol=1e-5)


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_an_own_file_that_was_changed_is_told(saved: Path) -> None:
    change(saved / "cross-encoder.json", max_lenght=5)
    with pytest.raises(RetrievoError, match=r"cross-encoder.json: the keys .*max_lenght"):
        CrossEncoder.load(saved)
