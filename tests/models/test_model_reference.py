"""Which model made vectors is known by name, commit and content, for hub models and folders alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from retrievo.models.encoder import Encoder
from retrievo.models.model_reference import model_record, recorded_model
from retrievo.support.artifact import Manifest
from retrievo.support.errors import RetrievoError

FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40
PLAIN = ("--pooling", "mean", "--dtype", "float32")


def copied(model: Path, folder: Path, scale: float = 1.0) -> Path:
    """The same model in another folder, its weights times a number."""
    shutil.copytree(model, folder)
    weights = {name: (array * np.float32(scale)).astype(array.dtype) for name, array in load_file(folder / W).items()}
    save_file(weights, folder / W, metadata={"format": "pt"})
    return folder


W = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that is not to be reached, and a cache with two models of which one has two commits."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, commit, scale in (("org/one", FIRST, 1.0), ("org/one", SECOND, 0.9), ("org/two", THIRD, 0.8)):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        copied(tiny_model, home / "snapshots" / commit, scale)
        refer(home, commit if commit != SECOND else FIRST)
    return tmp_path / "hub"


def refer(home: Path, commit: str) -> None:
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)


@pytest.fixture
def encoded(toy_dataset: Path, tmp_path: Path, retrievo: Callable) -> Callable[..., Path]:
    def encode(model: object, role: str, name: str, *flags: object) -> Path:
        asked = ("--model", model, f"--{role}", toy_dataset, "--output", tmp_path / name, *PLAIN, *flags)
        done = retrievo("encode", *asked)
        assert done.code == 0, done.err
        return tmp_path / name

    return encode


def test_a_manifest_knows_name_commit_and_content_of_a_hub_model(
    hub: Path, encoded: Callable, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    manifest = Manifest.read(encoded("org/one", "corpus", "documents"), "embeddings")
    recorded = manifest.inputs["model"]
    assert (recorded["name"], recorded["revision"]) == ("org/one", FIRST)
    assert recorded_model(manifest, "--model") == ("org/one", FIRST)
    copy = copied(tiny_model, tmp_path / "copy")
    assert model_record(str(copy), None)[1]["model"].fingerprint == recorded["fingerprint"]
    tables = ("--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset / "qrels" / "train.parquet")
    trained = retrievo("train", "--model", "org/one", *tables, "--output", tmp_path / "stage", "--max-steps", 1)
    assert trained.code == 0, trained.err
    assert Manifest.read(tmp_path / "stage", "model").inputs["model"]["revision"] == FIRST


def test_vectors_of_two_hub_models_are_never_compared(
    hub: Path, encoded: Callable, tmp_path: Path, retrievo: Callable
) -> None:
    documents, queries = encoded("org/one", "corpus", "documents"), encoded("org/two", "queries", "queries")
    found = retrievo("search", "--index", documents, "--queries", queries, "--output", tmp_path / "run.parquet")
    assert found.code == 1
    assert f"org/two at commit {THIRD}" in found.err
    assert f"org/one at commit {FIRST}" in found.err
    assert retrievo("index", "--embeddings", documents, "--output", tmp_path / "index").code == 0
    other = encoded("org/two", "corpus", "more")
    added = retrievo("index", "--embeddings", other, "--add", "--output", tmp_path / "index")
    assert (added.code, f"org/two at commit {THIRD}" in added.err) == (1, True), added.err


def test_a_revision_that_moved_is_another_model(
    hub: Path, encoded: Callable, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    documents = encoded("org/one", "corpus", "documents")
    refer(hub / "models--org--one", SECOND)
    queries = encoded("org/one", "queries", "queries")
    asked = ("--output", tmp_path / "run.parquet", "--dtype", "float32")
    found = retrievo("search", "--index", documents, "--queries", queries, *asked)
    assert found.code == 1
    assert f"org/one at commit {SECOND}" in found.err
    assert f"org/one at commit {FIRST}" in found.err
    again = retrievo("encode", "--model", "org/one", "--corpus", toy_dataset, "--output", documents, *PLAIN)
    assert again.code == 1
    assert (
        f"its input 'model' has changed (org/one at commit {FIRST} before, org/one at commit {SECOND} now)" in again.err
    )
    # texts are encoded by the commit that encoded the documents, wherever the name points by now
    assert retrievo("search", "--index", documents, "--queries", toy_dataset, *asked).code == 0
    pinned = encoded("org/one", "queries", "pinned", "--revision", FIRST)
    same = retrievo("search", "--index", documents, "--queries", pinned, "--output", tmp_path / "same.parquet")
    assert same.code == 0, same.err


def test_a_copy_is_the_same_model_and_a_changed_folder_is_not(
    encoded: Callable, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    model = copied(tiny_model, tmp_path / "model")
    documents = encoded(model, "corpus", "documents")
    queries = encoded(copied(tiny_model, tmp_path / "copy"), "queries", "queries")
    assert retrievo("search", "--index", documents, "--queries", queries, "--output", tmp_path / "r.trec").code == 0
    shutil.rmtree(model)
    copied(tiny_model, model, 0.9)
    asked = ("--queries", toy_dataset, "--output", tmp_path / "texts.trec", "--dtype", "float32")
    found = retrievo("search", "--index", documents, *asked)
    assert (found.code, f"{model}: has changed since it encoded these vectors" in found.err) == (1, True), found.err


def test_pooling_counts_as_it_is_and_not_as_it_was_said(
    encoded: Callable, tiny_model: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """A folder that states mean pooling makes the same vectors with and without the flag; a bare one does not."""
    Encoder.load(tiny_model, pooling="mean").save(tmp_path / "stated")
    for model, code in ((tmp_path / "stated", 0), (tiny_model, 1)):
        name = model.name
        documents = encoded(model, "corpus", f"{name}-documents")
        asked = ("--model", model, "--queries", toy_dataset, "--output", tmp_path / f"{name}-queries", *PLAIN[2:])
        assert retrievo("encode", *asked).code == 0
        queries, out = tmp_path / f"{name}-queries", tmp_path / f"{name}.trec"
        found = retrievo("search", "--index", documents, "--queries", queries, "--output", out)
        assert found.code == code, found.err
        assert ("pooling cls" in found.err) == bool(code)


@pytest.mark.parametrize("name", ["retrievo.json", "1_Pooling/config.json", "tokenizer.json", W, "query/config.json"])
def test_every_file_that_makes_vectors_counts(name: str, tmp_path: Path) -> None:
    for file in (name, W, "modules.json", "manifest.json", "README.md", "checkpoints/step-1/x.safetensors"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("before")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "Pooling"}]))

    def found() -> str:
        return model_record(str(tmp_path), None)[1]["model"].fingerprint

    before = found()
    for file in ("manifest.json", "README.md", "checkpoints/step-1/x.safetensors"):
        (tmp_path / file).write_text("after")
    assert found() == before
    (tmp_path / name).write_text("behind")
    assert found() != before


def test_a_change_in_the_middle_of_large_weights_is_seen(tmp_path: Path) -> None:
    weights = np.zeros(12 << 20, np.uint8)
    (tmp_path / W).write_bytes(weights.tobytes())
    before = model_record(str(tmp_path), None)[1]["model"].fingerprint
    weights[4 << 20 : 5 << 20] = 1
    (tmp_path / W).write_bytes(weights.tobytes())
    assert model_record(str(tmp_path), None)[1]["model"].fingerprint != before


def test_the_name_counts_where_the_model_card_decides(tiny_model: Path, tmp_path: Path) -> None:
    prints = [
        model_record(str(copied(tiny_model, tmp_path / name)), None)[1]["model"].fingerprint
        for name in ("a/e5-base-v2", "b/e5-base-v2", "b/mine")
    ]
    assert prints[0] == prints[1] != prints[2]  # "query: " stands before the queries of the first two alone


def test_a_model_that_is_not_there_is_told_at_once(hub: Path) -> None:
    with pytest.raises(RetrievoError, match="not to be had from the Hugging Face hub"):
        model_record("org/three", None)
    assert model_record("org/three", "v1", fetch=False) == ({"model": "org/three", "revision": "v1"}, {})
