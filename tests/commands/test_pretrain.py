"""Pre-training from the command line: stages, what is left out, killed runs, longer schedules, what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.commands.pretrain import FIRST_STAGE, PretrainConfig
from retrievo.models.condenser import HEAD_FILE
from retrievo.support.artifact import BEGIN, MANIFEST, Manifest

TOPICS = ("wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave")  # of the tiny model's vocabulary
FILLERS = ("the", "of", "over", "under", "fast", "slow", "thin", "hot", "test", "case", "data", "plot")
FLAGS = ["--batch-size", 32, "--max-length", 24, "--learning-rate", 1e-3, "--dtype", "float32"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: Any) -> Path:
    """100 documents on two topics each, of 20 to 40 words; 9 are too short for two spans, 4 of these for one."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(100):
        words = [f"{topic}{n}" for topic in rng.choice(TOPICS, 2) for n in range(4)]
        texts.append(" ".join(rng.choice([*words, *FILLERS], rng.integers(20, 40))))
    texts[:9] = ["wing flow heat"] * 4 + ["wing flow heat shock layer blade engine wave wing flow"] * 5
    path = tmp_path_factory.mktemp("pretrain") / "corpus.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(100)], "text": texts}), path)
    return path


def start(model: Path | str, corpus: Path, output: Path, *more: object) -> list[str]:
    return list(map(str, ["pretrain", "--model", model, "--corpus", corpus, "--output", output, *FLAGS, *more]))


def log(folder: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_model(one: Path, other: Path) -> None:
    for name in ("model.safetensors", HEAD_FILE):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: Any, tiny_model: Path, corpus: Path, module_retrievo: Callable) -> Path:
    folder = tmp_path_factory.mktemp("done") / "pretrained"
    outcome = module_retrievo(*start(tiny_model, corpus, folder, "--epochs", 10))
    assert outcome.code == 0, outcome.err
    (folder.parent / "said.txt").write_text(outcome.err)
    return folder


def test_a_model_without_a_head_gets_a_condenser_stage_then_cocondenser(pretrained: Path) -> None:
    manifest = Manifest.read(pretrained, "model")
    assert (manifest.stats["condenser_steps"], manifest.stats["steps"]) == (40 - 10, 30)  # 96 and 91 documents by 32
    assert "accuracy" not in json.loads((pretrained / FIRST_STAGE / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("loss", "contrastive_loss"):
        assert np.mean(log(pretrained, name)[-3:]) < np.mean(log(pretrained, name)[:3])


def test_documents_too_short_for_spans_are_counted_aloud(pretrained: Path) -> None:
    said = (pretrained.parent / "said.txt").read_text()
    assert "left out 4 documents with fewer than 8 tokens" in said
    assert "left out 9 documents with fewer than 16 tokens" in said


def test_what_comes_out_opens_everywhere_and_is_trained_on(
    pretrained: Path, toy_dataset: Path, tmp_path: Path, retrievo: Callable
) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM

    for kind in (AutoModel, AutoModelForMaskedLM):
        _, info = kind.from_pretrained(pretrained, output_loading_info=True)
        assert not [name for name in info["missing_keys"] if "pooler" not in name]
    tables = ["--corpus", toy_dataset, "--queries", toy_dataset, "--qrels", toy_dataset / "qrels" / "train.parquet"]
    outcome = retrievo("train", "--model", pretrained, *tables, "--output", tmp_path / "stage-1", "--max-steps", 2)
    assert outcome.code == 0, outcome.err
    assert "pooling" not in outcome.err  # the folder says it


def test_one_command_with_a_settings_file_and_no_other_flag(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrievo: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("retrievo.toml").write_text('[pretrain]\nmodel = "scratch:tiny"\nmax_steps = 2\nmax_length = 24\n')
    outcome = retrievo("pretrain", "--corpus", corpus)
    assert outcome.code == 0, outcome.err
    assert "into pretrained" in outcome.err
    assert Path("pretrained", MANIFEST).is_file()


def test_without_a_hub_one_error_names_both_ways_out(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrievo: Callable
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    outcome = retrievo("pretrain", "--corpus", corpus)
    assert outcome.code == 1
    assert "--model PATH" in outcome.err
    assert "--model scratch:small" in outcome.err
    assert not Path("pretrained", MANIFEST).exists()


@pytest.mark.parametrize("objective", ["mlm", "condenser"])
def test_objectives_of_one_pass_lower_their_loss(
    objective: str, tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = start(tiny_model, corpus, tmp_path / "out", "--objective", objective, "--max-steps", 20)
    outcome = retrievo(*flags)
    assert outcome.code == 0, outcome.err
    assert np.mean(log(tmp_path / "out")[-3:]) < np.mean(log(tmp_path / "out")[:3])
    assert (tmp_path / "out" / HEAD_FILE).exists() == (objective == "condenser")
    assert not (tmp_path / "out" / FIRST_STAGE).exists()


VIEWS = ["--objective", "simclr", "--batch-size", 32, "--window", 40, "--dtype", "float32"]


def test_contrast_needs_no_head_and_what_comes_out_is_used_at_once(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    from sentence_transformers import SentenceTransformer

    from retrievo.retrieval.embeddings import Embeddings

    model, common = tmp_path / "out", ["--model", tiny_model, "--corpus", corpus, *VIEWS]
    outcome = retrievo(
        "pretrain", *common, "--learning-rate", 1e-3, "--normalize", "--max-steps", 20, "--output", model
    )
    assert outcome.code == 0, outcome.err
    assert "vectors: mean of tokens, normalized, cosine" in outcome.err
    assert np.mean(log(model)[-3:]) < np.mean(log(model)[:3])
    assert not (model / FIRST_STAGE).exists()
    assert not (model / HEAD_FILE).exists()
    flags = ["--corpus", corpus, "--dtype", "float32", "--output", tmp_path / "vectors"]
    outcome = retrievo("encode", "--model", model, *flags)
    assert outcome.code == 0, outcome.err
    texts = pq.read_table(corpus)["text"].to_pylist()
    theirs = SentenceTransformer(str(model), device="cpu")
    assert theirs.similarity_fn_name == "cosine"
    ours = Embeddings(tmp_path / "vectors").take(np.arange(100))
    assert np.abs(ours - theirs.encode(texts)).max() < 1e-3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("mean", False, "dot")),
        (["--no-normalize", "--pooling", "cls"], ("cls", False, "dot")),
        (["--normalize"], ("mean", True, "cosine")),
    ],
)
def test_the_folder_says_what_was_trained(
    flags: list[str], expected: tuple[Any, ...], tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(
        "pretrain",
        "--model",
        tiny_model,
        "--corpus",
        corpus,
        *VIEWS,
        *flags,
        "--max-steps",
        1,
        "--output",
        tmp_path / "a",
    )
    assert outcome.code == 0, outcome.err
    assert spec_of(tmp_path / "a") == expected
    again = ["--model", tmp_path / "a", "--corpus", corpus, *VIEWS, "--max-steps", 1, "--output", tmp_path / "b"]
    assert retrievo("pretrain", *again).code == 0
    assert spec_of(tmp_path / "b") == expected  # a folder that says how it pools and compares is left as it is


def spec_of(model: Path) -> tuple[Any, ...]:
    told = json.loads((model / "retrievo.json").read_text())
    return told["pooling"], told["normalize"], told["similarity"]


def test_each_objective_has_the_recipe_of_its_paper_unless_told_otherwise(corpus: Path, retrievo: Callable) -> None:
    assert PretrainConfig(corpus=corpus).batch_size == 2_000
    made = PretrainConfig(corpus=corpus, objective="simclr", beta2=0.9)
    assert (made.batch_size, made.learning_rate, made.beta2, made.epsilon) == (2_048, 5e-5, 0.9, 1e-6)
    shown = retrievo("pretrain", "--corpus", corpus, "--objective", "simclr", "--beta2", 0.9, "--show-config").out
    assert "batch_size = 2048  # recipe" in shown
    assert "beta2 = 0.9  # flag" in shown


def test_condenser_steps_0_goes_straight_to_the_contrast_with_a_warning(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*start(tiny_model, corpus, tmp_path / "out", "--condenser-steps", 0, "--max-steps", 1))
    assert outcome.code == 0, outcome.err
    assert "no Condenser head" in outcome.err
    assert not (tmp_path / "out" / FIRST_STAGE).exists()


def test_a_pretrained_model_goes_on_without_another_condenser_stage(
    pretrained: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*start(pretrained, corpus, tmp_path / "out", "--max-steps", 1))
    assert outcome.code == 0, outcome.err
    assert Manifest.read(tmp_path / "out", "model").stats["condenser_steps"] == 0
    assert "fresh" not in outcome.err


def test_options_of_other_objectives_are_refused(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    for objective, *flag in (
        ("mlm", "--early-layer", 1),
        ("mlm", "--condenser-steps", 3),
        ("mlm", "--window", 40),
        ("simclr", "--max-length", 24),
    ):
        flags = ["--objective", objective, *flag, "--output", tmp_path / "out"]
        outcome = retrievo("pretrain", "--model", tiny_model, "--corpus", corpus, *flags)
        assert outcome.code == 2
        assert flag[0] in outcome.err


def test_a_finished_run_goes_on_with_a_longer_schedule(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = start(tiny_model, corpus, tmp_path / "out", "--condenser-steps", 2, "--warmup-ratio", 0.5)
    assert retrievo(*flags, "--max-steps", 4).code == 0
    longer = retrievo(*flags, "--max-steps", 8)
    assert longer.code == 1
    assert "max_steps was 4 and is now 8" in longer.err
    outcome = retrievo(*flags, "--max-steps", 8, "--continue")
    assert outcome.code == 0, outcome.err
    assert "warms up again" in outcome.err
    rates = log(tmp_path / "out", "learning_rate")
    assert rates[4:] == pytest.approx(rates[:4])  # the course of 4 steps once more
    assert Manifest.read(tmp_path / "out", "model").stats["steps"] == 8
    again = retrievo(*flags, "--max-steps", 8, "--continue")
    assert "already finished" in again.err
    shorter = retrievo(*flags, "--max-steps", 3, "--continue")
    assert shorter.code == 2
    assert "more than the 8 steps" in shorter.err


def test_a_continuation_that_was_cut_short_goes_on_as_that_continuation(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = ["--condenser-steps", 2, "--save-every", 1]
    for name in ("whole", "cut"):
        assert retrievo(*start(tiny_model, corpus, tmp_path / name, *flags, "--max-steps", 3)).code == 0
        assert retrievo(*start(tiny_model, corpus, tmp_path / name, *flags, "--max-steps", 6, "--continue")).code == 0
    cut = tmp_path / "cut"  # as a kill in step 6 leaves it
    manifest = json.loads((cut / MANIFEST).read_text())
    begin = {name: manifest[name] for name in ("kind", "format", "options", "config", "inputs")}
    (cut / BEGIN).write_text(json.dumps(begin))
    (cut / MANIFEST).unlink()
    (cut / "checkpoints" / "step-000006" / MANIFEST).unlink()
    outcome = retrievo(*start(tiny_model, corpus, cut, *flags, "--max-steps", 6, "--continue"))
    assert outcome.code == 0, outcome.err
    assert_same_model(tmp_path / "whole", cut)
    assert log(cut) == log(tmp_path / "whole")


CONTRIEVER = [*VIEWS, "--objective", "contriever", "--queue-size", 40, "--momentum", 0.9, "--learning-rate", 1e-3]


def contriever(model: Path, corpus: Path, output: Path, *more: object) -> list[str]:
    flags = ["--model", model, "--corpus", corpus, "--output", output, *CONTRIEVER[2:], *more]
    return list(map(str, ["pretrain", *flags]))


def test_a_run_with_a_queue_goes_on_exactly_where_it_was_stopped(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    """Encoder, the copy that follows it, the queue and its place are those of the run that was never stopped."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for output in (whole, cut):
        flags = ["--max-steps", 6, "--save-every", 2, "--keep-checkpoints", 9]
        assert retrievo(*contriever(tiny_model, corpus, output, *flags)).code == 0
    cut_short(cut, keep=4)
    outcome = retrievo(*contriever(tiny_model, corpus, cut, *flags))
    assert outcome.code == 0, outcome.err
    for name in ("model.safetensors", "checkpoints/step-000006/weights.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert log(whole) == log(cut)


def cut_short(folder: Path, keep: int) -> None:
    """Leaves a finished run as a kill would, after a checkpoint."""
    manifest = json.loads((folder / MANIFEST).read_text())
    begin = {name: manifest[name] for name in ("kind", "format", "options", "config", "inputs")}
    (folder / BEGIN).write_text(json.dumps(begin))
    (folder / MANIFEST).unlink()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > keep:
            (checkpoint / MANIFEST).unlink()


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: Any) -> Path:
    """20 documents on other topics."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice([f"{topic}{n}" for topic in TOPICS for n in range(4, 8)], 30)) for _ in range(20)]
    path = tmp_path_factory.mktemp("small") / "corpus.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(20)], "text": texts}), path)
    return path


def test_several_corpora_are_mixed_as_asked_and_a_killed_run_goes_on(
    tiny_model: Path, corpus: Path, small_corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    mix = ["--corpus", small_corpus, "--mix", "equal", "--held-out", 8, "--validate-every", 2]
    flags = [*mix, "--max-steps", 5, "--save-every", 2, "--keep-checkpoints", 9]
    for name in ("whole", "cut"):
        outcome = retrievo(*contriever(tiny_model, corpus, tmp_path / name, *flags))
        assert outcome.code == 0, outcome.err
    assert f"{corpus}: 87 documents of" in outcome.err  # 9 of 100 are too short, 4 are held out
    assert f"{small_corpus}: 16 documents of 30 tokens on average" in outcome.err
    assert outcome.err.count("% of an epoch") == 2
    cut_short(tmp_path / "cut", keep=2)
    assert retrievo(*contriever(tiny_model, corpus, tmp_path / "cut", *flags)).code == 0
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "cut/model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev loss" in line] == [2, 4, 5]
    inputs = Manifest.read(tmp_path / "whole", "model").inputs
    assert {"corpus", "corpus 2"} <= inputs.keys()
    other = retrievo(*contriever(tiny_model, corpus, tmp_path / "whole", *flags[:2], "--max-steps", 5))
    assert other.code == 1
    assert "mix" in other.err or "held_out" in other.err  # another mix is another model


def test_the_loss_of_held_out_documents_falls(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    flags = [*VIEWS, "--learning-rate", 1e-3, "--held-out", 20, "--max-steps", 20]
    outcome = retrievo("pretrain", "--model", tiny_model, "--corpus", corpus, *flags, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["dev loss"] for line in lines if "dev loss" in line]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert f"loss {losses[-1]:.4f}" in outcome.err.split("held out")[-1]


def test_show_views_prints_what_the_model_would_see_and_makes_nothing(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*start(tiny_model, corpus, tmp_path / "out", "--show-views", 3))
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("document ") == 3
    assert outcome.out.count("span, ") == outcome.out.count("to predict: ") == 6
    assert "[MASK]" in outcome.out
    assert not (tmp_path / "out").exists()
    assert "a new one harms the backbone" not in outcome.err  # the condenser stage puts a head there
    common = ["--model", tiny_model, "--corpus", corpus, "--output", tmp_path / "out", "--show-views", 2]
    cloze = retrievo("pretrain", *common, *VIEWS[2:], "--objective", "ict", "--keep-query", 0).out.splitlines()
    text, query, document = (line.partition(": ")[2] for line in cloze[1:4])
    span = query.removeprefix("[CLS] ").removesuffix(" [SEP]")
    assert span in text
    assert span not in document
    assert len(document.split()) - 2 == len(text.split()[:40]) - len(span.split())


def test_weights_put_a_factor_before_each_term(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    for name, weight in (("both", "mlm=0.5,contrastive=2"), ("alone", "mlm=0")):
        flags = ["--weight", weight, "--condenser-steps", 1, "--max-steps", 2]
        outcome = retrievo(*start(tiny_model, corpus, tmp_path / name, *flags))
        assert outcome.code == 0, outcome.err
    for line in map(json.loads, (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()):
        terms = 0.5 * (line["head_mlm_loss"] + line["late_mlm_loss"]) + 2 * line["contrastive_loss"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
    line = json.loads((tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["contrastive_loss"], rel=1e-6)
    assert "head_mlm_loss" not in line
    assert "head_mlm_loss" in (tmp_path / "alone" / FIRST_STAGE / "metrics.jsonl").read_text()  # that stage is whole


def test_vectors_that_become_the_same_are_warned_about_once(said: Callable[[], str]) -> None:
    from retrievo.commands.pretrain import _CollapseWatch

    watch = _CollapseWatch(warm=10)
    for step, spread in ((5, 0.01), (11, 0.5), (12, 0.04), (13, 0.03)):
        watch({"step": step, "vector_std": spread})
    watch({"step": 14, "loss": 1.0})  # an objective without vectors
    told = " ".join(said().split())
    assert told.count("the vectors are nearly all the same") == 1
    assert "step 12: the vectors are nearly all the same (standard deviation 0.040" in told


def test_chunks_are_measured_for_a_loss_that_looks_up_its_keys(
    tiny_model: Path, corpus: Path, tmp_path: Path, retrievo: Callable
) -> None:
    outcome = retrievo(*contriever(tiny_model, corpus, tmp_path / "out", "--chunk-tokens", "auto", "--max-steps", 2))
    assert outcome.code == 0, outcome.err
    assert "tokens are the fastest here" in outcome.err


@pytest.mark.slow
def test_a_killed_run_with_queue_mix_and_held_out_documents_gives_the_same_bytes(
    kill_harness: Any, tiny_model: Path, corpus: Path, small_corpus: Path
) -> None:
    def command(output: Path) -> list[str]:
        more = ["--corpus", small_corpus, "--mix", "alpha=0.5", "--held-out", 6, "--max-steps", 60, "--save-every", 7]
        return contriever(tiny_model, corpus, output, *more)

    def same(reference: Path, other: Path) -> None:
        assert (reference / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        last = "checkpoints/step-000060/weights.safetensors"
        assert (reference / last).read_bytes() == (other / last).read_bytes()
        assert losses(reference) == losses(other)

    def losses(folder: Path) -> list[float]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line.get("loss", line.get("dev loss")) for line in lines]

    kill_harness.check(command, kills=2, same=same)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["simclr", "ict", "contriever"])
def test_two_processes_contrast_as_one(
    objective: str,
    tiny_model: Path,
    corpus: Path,
    small_corpus: Path,
    tmp_path: Path,
    process: Callable[..., float | None],
) -> None:
    mix = ["--corpus", small_corpus, "--mix", "1,2", "--held-out", 6, "--max-steps", 6]
    for processes in (1, 2):
        common = ["--model", tiny_model, "--corpus", corpus, *VIEWS[2:], "--objective", objective, *mix]
        more = ["--queue-size", 40] if objective == "contriever" else []
        process(
            list(map(str, ["pretrain", *common, *more, "--output", tmp_path / str(processes)])), processes=processes
        )
    one, two = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("1", "2"))
    for left, right in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert left.keys() == right.keys()
        for name in {"loss", "dev loss", "alignment", "uniformity", "vector_std"} & left.keys():
            assert left[name] == pytest.approx(right[name], rel=2e-3, abs=1e-4), name


@pytest.mark.slow
def test_killed_in_either_stage_and_run_again_gives_the_same_bytes(
    kill_harness: Any, tiny_model: Path, corpus: Path
) -> None:
    def command(output: Path) -> list[str]:
        return start(tiny_model, corpus, output, "--max-steps", 60, "--save-every", 7)

    def same(reference: Path, other: Path) -> None:
        assert_same_model(reference, other)
        assert log(reference) == log(other)

    kill_harness.check(command, kills=2, same=same)


@pytest.mark.slow
def test_two_processes_pretrain_as_one(
    tiny_model: Path, corpus: Path, tmp_path: Path, process: Callable[..., float | None]
) -> None:
    for processes in (1, 2):
        process(start(tiny_model, corpus, tmp_path / str(processes), "--max-steps", 6), processes=processes)
    assert log(tmp_path / "1") == pytest.approx(log(tmp_path / "2"), rel=1e-4)
