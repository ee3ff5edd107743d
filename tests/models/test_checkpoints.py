"""Whatever in a model folder would change its numbers is applied or refused by name, whether or not peft is there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from retrievo.models.compute import ComputeOptions
from retrievo.models.condenser import MaskedEncoder
from retrievo.models.cross_encoder import CrossEncoder
from retrievo.models.model_reference import model_record
from retrievo.support.errors import RetrievoError

TEXTS = ["dense retrieval maps queries", "a short one", "inverted indexes count words"]


def adapted(kind: str, base: Path, folder: Path, **settings: object) -> Path:
    """An adapter of random weights for a model of transformers, as peft saves it."""
    peft = pytest.importorskip("peft")
    import transformers

    arguments = {"num_labels": 1} if kind == "AutoModelForSequenceClassification" else {}
    model = getattr(transformers, kind).from_pretrained(base, **arguments)
    torch.manual_seed(1)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"], **settings))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    lora.save_pretrained(str(folder))
    change(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def together(adapter: Path, base: Path, folder: Path) -> Path:
    """A folder with weights and an adapter."""
    shutil.copytree(base, folder)
    for path in adapter.iterdir():
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    """An adapter alone, without a tokenizer."""
    return adapted("AutoModel", bert_folder, tmp_path_factory.mktemp("adapter") / "alone")


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if peft were not installed, for us and for transformers."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    for module in ("utils.import_utils", "integrations.peft", "models.auto.auto_factory", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.is_peft_available", lambda: False, raising=False)


@pytest.fixture(params=["alone", "beside the weights"])
def holder(request: pytest.FixtureRequest, adapter: Path, bert_folder: Path, tmp_path: Path) -> Path:
    """A folder with an adapter, of either kind."""
    return adapter if request.param == "alone" else together(adapter, bert_folder, tmp_path / "both")


def test_an_adapter_is_merged_into_its_model(
    load: Callable, holder: Path, bert_folder: Path, vectors_of: Callable, open_theirs: Callable, tmp_path: Path
) -> None:
    encoder = load(holder, pooling="mean")
    ours = vectors_of(encoder, "query", TEXTS)
    assert np.abs(ours - vectors_of(load(bert_folder, pooling="mean"), "query", TEXTS)).max() > 0.1
    encoder.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter*"))
    np.testing.assert_allclose(open_theirs(tmp_path / "saved").encode_query(TEXTS), ours, atol=1e-5)
    np.testing.assert_allclose(vectors_of(load(tmp_path / "saved"), "query", TEXTS), ours, atol=1e-6)


def test_an_adapter_inside_a_folder_of_sentence_transformers_gives_its_vectors(
    load: Callable, adapter: Path, bert_folder: Path, assert_same_vectors: Callable, tmp_path: Path
) -> None:
    """As it saves a model with an adapter: modules, tokenizer and the adapter, whose base is elsewhere."""
    pytest.importorskip("peft")
    folder = tmp_path / "theirs"
    shutil.copytree(bert_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert_same_vectors(load(folder), folder, TEXTS)


def test_a_head_that_only_the_adapter_has_makes_a_cross_encoder(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rerankers are published: an adapter with its head, of a language model without one."""
    folder = adapted("AutoModelForSequenceClassification", bert_folder, tmp_path / "ranker", task_type="SEQ_CLS")
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=1)
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    pair = AutoTokenizer.from_pretrained(bert_folder)("a short one", "dense retrieval", return_tensors="pt")
    model = CrossEncoder.load(folder, notify=lambda text: None).eval()
    tokenization = model.tokenization
    query, document = tokenization.query.tokenize(["a short one"]), tokenization.document.tokenize(["dense retrieval"])
    scores = model.scores(*tokenization.rows([(query.row(0), document.row(0))]), ComputeOptions("float32"))
    with torch.no_grad():
        np.testing.assert_allclose(scores, torch.sigmoid(theirs(**pair).logits[:, 0]), atol=1e-5)


def test_without_peft_every_adapter_is_refused_with_the_way_to_get_it(
    load: Callable, holder: Path, without_peft: None
) -> None:
    for opens in (load, lambda folder: CrossEncoder.load(folder, train=True)):
        with pytest.raises(RetrievoError, match=r"an adapter .*needs the peft package; pip install 'retrievo\[lora\]'"):
            opens(holder)


def test_what_can_not_be_applied_of_an_adapter_is_refused(load: Callable, adapter: Path, tmp_path: Path) -> None:
    def spoiled(name: str, **values: object) -> Path:
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        change(folder / "adapter_config.json", **values)
        return folder

    with pytest.raises(RetrievoError, match=r"an adapter of the model '/absent': no folder.*base_model_name_or_path"):
        load(spoiled("moved", base_model_name_or_path="/absent"))
    with pytest.raises(RetrievoError, match=r"weights of the adapter and of the model do not meet \(base_model"):
        load(spoiled("fewer", target_modules=["query"]))
    with pytest.raises(RetrievoError, match="peft can't merge"):
        load(spoiled("prompt", peft_type="PROMPT_TUNING", num_virtual_tokens=2))
    several = spoiled("several")
    shutil.copytree(adapter, several / "other")
    with pytest.raises(RetrievoError, match=r"several adapters \(its own, other\)"):
        load(several)
    (pickled := spoiled("pickled")).joinpath("adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(RetrievoError, match="without weights in safetensors"):
        load(pickled)
    with pytest.raises(RetrievoError, match="do not meet"):  # of the backbone alone
        MaskedEncoder.load(adapter, notify=lambda text: None)


def test_an_adapter_in_a_folder_of_its_own_is_told(
    load: Callable, notices: list[str], adapter: Path, bert_folder: Path, tmp_path: Path
) -> None:
    """As published beside merged weights; transformers does not apply it either."""
    shutil.copytree(bert_folder, tmp_path / "model")
    shutil.copytree(adapter, tmp_path / "model" / "lora")
    load(tmp_path / "model")
    assert "lora lies in a folder of its own there as adapter and is not applied" in "\n".join(notices)


def test_the_base_of_an_adapter_is_part_of_what_a_manifest_knows(
    adapter: Path, bert_folder: Path, roberta_folder: Path, tmp_path: Path
) -> None:
    before = model_record(str(adapter), None)[1]["model"].fingerprint
    moved = shutil.copytree(adapter, tmp_path / "moved")
    shutil.copytree(bert_folder, tmp_path / "base")
    change(moved / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    first = model_record(str(moved), None)[1]["model"].fingerprint
    shutil.copy(roberta_folder / "model.safetensors", tmp_path / "base")
    assert len({before, first, model_record(str(moved), None)[1]["model"].fingerprint}) == 3


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "own.Model"}}, r"code that comes with the model \(own.Model\)"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, r"quantized weights \(gptq\)"),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["own.T", None]}},
            "code that comes with the token",
        ),
    ],
)
def test_code_and_quantized_weights_are_refused_by_name(
    load: Callable, bert_folder: Path, tmp_path: Path, file: str, values: dict, message: str
) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    change(tmp_path / "model" / file, **values)
    for opens in (load, lambda folder: CrossEncoder.load(folder, train=True)):
        with pytest.raises(RetrievoError, match=message):
            opens(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_computed_in_float32(
    load: Callable, bert_folder: Path, tmp_path: Path, vectors_of: Callable, dtype: torch.dtype
) -> None:
    from transformers import AutoModel

    half = AutoModel.from_pretrained(bert_folder).to(dtype)
    shutil.copytree(bert_folder, tmp_path / "half")
    half.save_pretrained(tmp_path / "half")
    encoder = load(tmp_path / "half", pooling="cls")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    ids = torch.tensor([encoder.tokenizer("a short one")["input_ids"]])
    expected = half.float()(ids).last_hidden_state[0, 0].detach()
    np.testing.assert_allclose(vectors_of(encoder, "query", ["a short one"])[0], expected, atol=1e-5)
