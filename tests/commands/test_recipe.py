"""Recipes: each step done once, what changed done again and no more, killed and run again to the same bytes."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from retrievo.commands.recipe import MARKS, RunConfig, read_recipe
from retrievo.support.errors import RetrievoError
from tests.conftest import CHECKOUT, Outcome

EXAMPLES = sorted(
    path
    for path in (CHECKOUT / "examples").glob("*.toml")
    if not path.stem.endswith("-pretrain")  # of one command
)

RECIPE = """
[variables]
data = "data"
model = "model"
seed = 0

[defaults]
corpus = "{data}"
queries = "{data}"
seed = "{seed}"
dtype = "fp32"

[steps.bm25]
command = "index"
type = "bm25"

[steps.bm25-test]
command = "search"
index = "{bm25}"
judged = "{data}"
depth = 20

[steps.negatives]
command = "mine-negatives"
source = "index"
index = "{bm25}"
qrels = "{data}/qrels/train.parquet"
depth = 30
samples = 4

[steps.stage-1]
command = "train"
model = "{model}"
qrels = "{data}/qrels/train.parquet"
negatives = "{negatives}"
negatives_per_query = 2
batch_size = 32
max_steps = 4
learning_rate = 3e-3

[steps.vectors-1]
command = "encode"
model = "{stage-1}"

[steps.stage-1-test]
command = "search"
index = "{vectors-1}"
judged = "{data}"
depth = 20

[steps.results]
command = "evaluate"
run = ["{bm25-test}", "{stage-1-test}"]
qrels = "{data}"
baseline = "{bm25-test}"
metrics = ["mrr@10", "recall@20"]
"""
STEPS = re.findall(r"\[steps\.(.*)\]", RECIPE)


def lay_out(folder: Path, dataset: Path, model: Path, recipe: str = RECIPE) -> Path:
    """A recipe with its data and its model beside it; returns its path."""
    shutil.copytree(dataset, folder / "data")
    shutil.copytree(model, folder / "model")
    (folder / "road.toml").write_text(recipe)
    return folder / "road.toml"


def said(outcome: Outcome) -> dict[str, str]:
    """What `run` said of each step: `finished`, or that it was done."""
    lines = [line.split(": ", 1) for line in outcome.err.splitlines()]
    found = {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in STEPS}
    return {name: "finished" if text == "finished" else "done" for name, text in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any, toy_dataset: Path, tiny_model: Path, module_retrievo: Callable) -> Path:
    """A recipe that has been run."""
    recipe = lay_out(tmp_path_factory.mktemp("recipe"), toy_dataset, tiny_model)
    made = module_retrievo("run", recipe)
    assert made.code == 0, made.err
    assert said(made) == dict.fromkeys(STEPS, "done")
    assert made.out.startswith("results\tmrr@10\trecall@20\t")
    return recipe


@pytest.fixture
def road(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(finished.parent, tmp_path / "home")
    return tmp_path / "home" / finished.name


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def change(recipe: Path, before: str, after: str) -> None:
    text = recipe.read_text()
    assert text.count(before) == 1, before
    recipe.write_text(text.replace(before, after))


def test_run_again_a_recipe_does_nothing_and_shows_its_results(road: Path, retrievo: Callable) -> None:
    before, start = stamps(road.parent), time.monotonic()
    again = retrievo("run", road)
    assert time.monotonic() - start < 3  # some 0.1 s beyond the imports, with room for a busy machine
    assert "is already finished; nothing to do" in again.err
    assert said(again) == dict.fromkeys(STEPS, "finished")
    rows = [line.split("\t") for line in again.out.splitlines()]
    assert [row[0] for row in rows] == ["results", "bm25-test", "stage-1-test"]
    values = json.loads((road.parent / "road" / "results.json").read_text())
    assert float(rows[1][1]) == pytest.approx(values["bm25-test"]["mrr@10"], abs=5e-5)
    assert stamps(road.parent) == before


@pytest.mark.parametrize(
    ("before", "after", "done_again"),
    [
        ("samples = 4", "samples = 5", {"negatives", "stage-1", "vectors-1", "stage-1-test", "results"}),
        ("max_steps = 4", "max_steps = 5", {"stage-1", "vectors-1", "stage-1-test", "results"}),
        ('metrics = ["mrr@10", "recall@20"]', 'metrics = ["mrr@10"]', {"results"}),
        ('"{bm25}"\njudged = "{data}"\ndepth = 20', '"{bm25}"\njudged = "{data}"\ndepth = 9', {"bm25-test", "results"}),
        ('command = "train"', 'command = "train"\nthreads = 1\nsave_every = 2', set()),  # affect no output
        ('index = "{bm25}"\nqrels', 'index = "{bm25}"\naudit = 3\nqrels', set()),
    ],
    ids=["samples", "steps", "metrics", "depth", "threads", "audit"],
)  # fmt: skip
def test_a_changed_option_does_again_exactly_what_depends_on_it(
    before: str, after: str, done_again: set[str], road: Path, retrievo: Callable
) -> None:
    change(road, before, after)
    outcome = retrievo("run", road, *(["--force"] if done_again else []))
    assert outcome.code == 0, outcome.err
    assert {name for name, state in said(outcome).items() if state == "done"} == done_again


def test_a_step_that_comes_out_the_same_ends_the_change(road: Path, retrievo: Callable) -> None:
    change(road, "depth = 30\nsamples = 4", "depth = 30\nsamples = 4\nmax_score = 1e9")  # drops nothing
    outcome = retrievo("run", road, "--force")
    assert outcome.code == 0, outcome.err
    states = said(outcome)
    assert states["negatives"] == "done"
    assert states["stage-1"] == "done"  # its manifest tells the options of the pool, so the pool is another file
    assert states["vectors-1"] == "finished"


def test_another_input_does_again_what_reads_it(road: Path, toy_dataset: Path, retrievo: Callable) -> None:
    path = road.parent / "data" / "qrels" / "train.parquet"
    pq.write_table(pq.read_table(path).slice(0, 150), path)
    (road.parent / "data" / "notes.txt").write_text("beside the tables")
    outcome = retrievo("run", road, "--force")
    assert outcome.code == 0, outcome.err
    redone = {name for name, state in said(outcome).items() if state == "done"}
    assert redone == {"negatives", "stage-1", "vectors-1", "stage-1-test", "results"}


def test_another_table_of_a_further_data_set_does_its_training_again(
    toy_dataset: Path, tiny_model: Path, tmp_path: Path, retrievo: Callable
) -> None:
    lines = ['corpus = "{data}"', 'queries = "{data}"', 'qrels = "{data}/qrels/train.parquet"']
    more = ["[train]", *lines[:2], 'qrels = "more.parquet"']
    step = [
        "[steps.both]",
        'command = "train"',
        'model = "model"',
        'extra_dataset = "more.toml"',
        "max_steps = 1",
        *lines,
    ]
    recipe = lay_out(tmp_path, toy_dataset, tiny_model, "\n".join(step).replace("{data}", "data"))
    (tmp_path / "more.toml").write_text("\n".join(more).replace("{data}", "data"))
    judged = pq.read_table(tmp_path / "data" / "qrels" / "test.parquet")
    pq.write_table(judged, tmp_path / "more.parquet")
    assert "both: finished" not in retrievo("run", recipe).err
    (tmp_path / "data" / "notes.txt").write_text("beside the tables")
    assert "both: finished" in retrievo("run", recipe).err
    pq.write_table(judged.slice(0, 50), tmp_path / "more.parquet")
    assert "both (another extra-dataset-qrels)" in retrievo("run", recipe).err
    assert "both: finished" not in retrievo("run", recipe, "--redo", "both").err


def test_a_dry_run_says_what_would_be_done_and_why_and_touches_nothing(road: Path, retrievo: Callable) -> None:
    change(road, "max_steps = 4", "max_steps = 5")
    shutil.rmtree(road.parent / "road" / "bm25")
    before = stamps(road.parent)
    outcome = retrievo("run", road, "--dry-run")
    assert outcome.code == 0, outcome.err
    states = {line.split("\t")[0]: line.split("\t")[1] for line in outcome.out.splitlines()[1:]}
    assert list(states) == STEPS
    assert states["bm25"] == "to redo: its output is gone or another one"
    assert "bm25" in states["bm25-test"]
    assert states["stage-1"] == "to redo: max_steps was 4"
    assert states["vectors-1"] == "to redo, if stage-1 changes"
    told = "without --dry-run: .*finished steps would be redone: .*stage-1 \\(max_steps was 4\\)"
    assert re.search(told, outcome.err)
    assert stamps(road.parent) == before
    commands = [line.split("\t")[2] for line in outcome.out.splitlines()[1:]]
    assert all(command.startswith("retrievo ") for command in commands)


def test_steps_of_a_version_with_fewer_options_are_finished_where_the_new_ones_are_off(
    road: Path, retrievo: Callable
) -> None:
    path = road.parent / "road" / MARKS / "stage-1.json"
    mark = json.loads(path.read_text())
    mark["work"]["config"] |= {"an_option_of_before": False, "another": None}
    path.write_text(json.dumps(mark))
    assert "stage-1: finished" in retrievo("run", road).err


def test_the_first_dry_run_needs_no_output(
    tmp_path: Path, toy_dataset: Path, tiny_model: Path, retrievo: Callable
) -> None:
    outcome = retrievo("run", lay_out(tmp_path, toy_dataset, tiny_model), "--dry-run")
    assert [line.split("\t")[1] for line in outcome.out.splitlines()[1:]] == ["to do"] * len(STEPS)


def test_only_some_steps_are_done_and_what_they_need_is_said(road: Path, retrievo: Callable) -> None:
    change(road, "max_steps = 4", "max_steps = 5")
    change(road, '"recall@20"]', '"recall@10"]')
    refused = retrievo("run", road, "--only", "vectors-1")
    assert refused.code == 1
    assert "vectors-1: needs stage-1, which is not finished (to redo: max_steps was 4)" in refused.err
    stopped = retrievo("run", road, "--only", "stage-1", "vectors-1")
    assert "stage-1 (max_steps was 4), vectors-1 (if stage-1 changes); pass --force" in stopped.err
    outcome = retrievo("run", road, "--only", "stage-1", "vectors-1", "--redo", "stage-1", "vectors-1")
    assert outcome.code == 0, outcome.err
    assert said(outcome) == {"stage-1": "done", "vectors-1": "done"}
    assert outcome.out == ""
    unknown = retrievo("run", road, "--only", "stage-2")
    assert "--only: found 'stage-2'; did you mean 'stage-1'?" in unknown.err


def test_variables_are_set_and_the_output_goes_elsewhere(road: Path, retrievo: Callable, monkeypatch: Any) -> None:
    monkeypatch.chdir(road.parent)
    shutil.copytree("data", "copy")
    flags = ["--set", "seed=1", "data=copy", "--output", "other", "--only", "negatives", "bm25"]
    outcome = retrievo("run", road, *flags)
    assert outcome.code == 0, outcome.err
    assert said(outcome) == {"bm25": "done", "negatives": "done"}
    assert sorted(path.name for path in Path("other").iterdir() if path.is_file()) == [
        "negatives.audit.md",
        "negatives.dropped.parquet",
        "negatives.parquet",
    ]
    assert Path("other/negatives.parquet").read_bytes() != Path("road/negatives.parquet").read_bytes()  # another draw
    assert retrievo("run", road).err.count(": finished") == len(STEPS)


def test_what_the_recipe_did_not_make_is_never_removed(road: Path, retrievo: Callable) -> None:
    precious = road.parent / "road" / "stage-1-test.parquet"
    shutil.copy(road.parent / "road" / "bm25-test.parquet", precious)
    before = precious.read_bytes()
    change(
        road,
        'index = "{vectors-1}"\njudged = "{data}"\ndepth = 20',
        'index = "{vectors-1}"\njudged = "{data}"\ndepth = 9',
    )
    for flags in ([], ["--force"]):
        outcome = retrievo("run", road, *flags)
        assert outcome.code == 1
        assert "is in the way: it is not what this recipe made; move it away, and run the recipe again" in outcome.err
        assert precious.read_bytes() == before


@pytest.fixture
def notes(tmp_path: Path, retrievo: Callable) -> Path:
    """A finished recipe of two steps without a model, with a file of the user in what the first one made."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "wings.txt").write_text(" ".join(f"wing{n} flow" for n in range(100)))
    shutil.copy(CHECKOUT / "tests" / "notes.toml", tmp_path)
    made = retrievo("run", tmp_path / "notes.toml", "--output", tmp_path / "home")
    assert made.code == 0, made.err
    (tmp_path / "home" / "notes" / "mine.txt").write_text("mine")
    return tmp_path


def test_finished_steps_are_not_made_anew_without_a_word(notes: Path, retrievo: Callable) -> None:
    command, before = ["run", notes / "notes.toml", "--output", notes / "home", "--set", "words=60"], stamps(notes)
    stopped = retrievo(*command)
    assert stopped.code == 1
    told = "finished steps would be redone: notes (passage_words was 30), bm25 (if notes changes); "
    assert told + "pass --force for all of them, or --redo notes bm25" in stopped.err
    partly = retrievo(*command, "--redo", "notes")
    assert "redone: bm25 (if notes changes); pass --force for all of them, or --redo notes" in partly.err
    assert told in retrievo(*command, "--dry-run").err
    assert "without --dry-run" not in retrievo(*command, "--dry-run", "--force").err
    assert stamps(notes) == before
    assert retrievo(*command, "--redo", "notes", "bm25").code == 0
    assert (notes / "home" / "notes" / "mine.txt").read_text() == "mine"
    assert retrievo(*command).err.count(": finished") == 2
    both = retrievo(*command, "--force", "--redo", "notes")
    assert (both.code, "--redo: is given together with --force" in both.err) == (2, True)
    assert "--redo: found 'nots'; did you mean 'notes'?" in retrievo(*command, "--redo", "nots").err


def test_a_step_that_fails_leaves_its_old_output(notes: Path, retrievo: Callable, monkeypatch: Any) -> None:
    from retrievo.data.importers import dataset

    def fails(*_: object) -> None:
        raise RetrievoError("import", "fails")

    command = ["run", notes / "notes.toml", "--output", notes / "home", "--set", "words=60", "--force"]
    before = {path: path.read_bytes() for path in (notes / "home" / "notes").rglob("*") if path.is_file()}
    monkeypatch.setattr(dataset.DatasetWriter, "finish", fails)
    assert "import: fails" in retrievo(*command).err
    assert {path: path.read_bytes() for path in (notes / "home" / "notes").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    again = retrievo(*command[:-1])
    assert "redone: notes (what replaces it is unfinished), bm25 (if notes changes" in again.err
    assert retrievo(*command).code == 0
    assert (notes / "home" / "notes" / "mine.txt").read_text() == "mine"


def test_unfinished_work_of_other_options_is_begun_anew(
    notes: Path, toy_dataset: Path, tiny_model: Path, retrievo: Callable, monkeypatch: Any
) -> None:
    from retrievo.training.engine import checkpoints

    saved: list[int] = []
    save = checkpoints.save

    def interrupted(folder: Path, step: int, *rest: Any) -> None:
        save(folder, step, *rest)
        saved.append(step)
        if len(saved) == 1:
            raise KeyboardInterrupt

    step = (
        f'[steps.model]\ncommand = "train"\nmodel = "{tiny_model}"\nseed = "{{seed}}"\nmax_steps = 2\nsave_every = 1\n'
    )
    tables = "".join(f'{noun} = "{toy_dataset}"\n' for noun in ("corpus", "queries"))
    qrels = f'qrels = "{toy_dataset}/qrels/train.parquet"\nnegatives_per_query = 0\ndtype = "fp32"\nbatch_size = 4\n'
    (notes / "train.toml").write_text("[variables]\nseed = 0\n" + step + tables + qrels)
    monkeypatch.setattr(checkpoints, "save", interrupted)
    assert retrievo("run", notes / "train.toml").code == 130
    assert saved == [1]
    outcome = retrievo("run", notes / "train.toml", "--set", "seed=1")
    assert outcome.code == 0, outcome.err
    assert saved == [1, 1, 2]


@pytest.mark.parametrize(
    ("recipe", "code", "message"),
    [
        ("", 2, "has no steps; expected sections such as [steps.stage-1]"),
        ("[step.x]\n", 2, "unknown section [step]; did you mean 'steps'?"),
        ("steps = 3\n", 2, "steps is 3; expected a section [steps]"),
        ("[steps]\nx = 3\n", 2, "steps.x is 3; expected a section [steps.x]"),
        ("[steps.x]\n", 2, "[steps.x]: has no command"),
        ('[steps.x]\ncommand = "serch"\n', 2, "[steps.x]: found the command 'serch'; did you mean 'search'?"),
        ('[steps."a b"]\ncommand = "index"\n', 2, "is no name for a step"),
        ('[steps.x]\ncommand = "index"\ntyp = "bm25"\n', 2, "[steps.x]: unknown key 'typ'; did you mean 'type'?"),
        ('[steps.x]\ncommand = "index"\noutput = "y"\n', 2, "[steps.x] output: has no meaning in a recipe"),
        ('[steps.x]\ncommand = "index"\nforce = true\n', 2, "[steps.x] force: has no meaning in a recipe"),
        ('[steps.x]\ncommand = "index"\ntype = "bm25"\ncorpus = "{y}"\n', 2, "found '{y}'; expected an earlier step"),
        ('[defaults]\nsed = 1\n[steps.x]\ncommand = "train"\nmodel = "m"\ncorpus = "c"\nqueries = "q"\nqrels = "r"\n',
         2, "[defaults]: no step knows the key 'sed'; did you mean 'seed'?"),
        ('[steps.x]\ncommand = "index"\ntype = "bm25"\n', 2, "--type bm25: needs texts; pass --corpus CORPUS"),
        ('[steps.x]\ncommand = "index"\ntype = "bm25"\ncorpus = "c"\nheap = 3\n', 2, "heap: found 3; expected text"),
        ('[steps.x]\ncommand = "index"\ntype = "bm25"\ncorpus = "c.parquet"\n', 1, "c.parquet: no such file or folder"),
        ("[steps.x\n", 1, "is not TOML"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_told_in_one_line_before_any_step_begins(
    recipe: str, code: int, message: str, tmp_path: Path, retrievo: Callable
) -> None:
    (tmp_path / "bad.toml").write_text(recipe)
    outcome = retrievo("run", tmp_path / "bad.toml")
    assert message in outcome.err
    assert (outcome.code, outcome.err.count("error: "), "Traceback" in outcome.err) == (code, 1, False)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "seed"], "--set: found 'seed'; expected NAME=VALUE"),
        (["--set", "sed=1"], "--set: found 'sed'; expected a variable of"),
        (["--set", "seed=one"], "seed: found 'one'; expected a whole number"),
    ],
)
def test_a_wrong_setting_is_told(flags: list[str], message: str, finished: Path, retrievo: Callable) -> None:
    outcome = retrievo("run", finished, *flags)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_a_recipe_that_is_not_there_is_told(tmp_path: Path, retrievo: Callable) -> None:
    outcome = retrievo("run", tmp_path / "no.toml")
    assert (outcome.code, "no.toml: no such file" in outcome.err) == (1, True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_recipes_that_come_along_hold_no_mistake(path: Path) -> None:
    steps = read_recipe(RunConfig(file=path))
    assert steps[-1].command == "evaluate"


@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES if path.stem not in ("distillation", "tas-balanced")],  # of one round
    ids=lambda path: path.stem,
)
def test_recipes_of_two_rounds_tell_what_the_second_could_reach(path: Path) -> None:
    steps = read_recipe(RunConfig(file=path))
    if sum(step.command == "train" for step in steps) < 2:
        assert path.stem == "scifact"
        return
    assert any("nb-recall" in metric for step in steps for metric in getattr(step.config, "metrics", ()))


def test_there_are_recipes_of_the_papers() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "cocondenser-msmarco",
        "cocondenser-nq",
        "contriever-msmarco",
        "scifact-small",
        "tas-balanced",
    }


def test_tas_balanced_runs_to_its_table(
    tmp_path: Path, toy_dataset: Path, tiny_model: Path, retrievo: Callable
) -> None:
    from retrievo.models.encoder import Encoder

    teacher = tmp_path / "teacher"
    Encoder.load(tiny_model, pooling="mean").save(teacher)  # a plain checkpoint would be taken for a cross-encoder
    paths = {
        "data": toy_dataset,
        "train": toy_dataset / "qrels" / "train.parquet",
        "test": toy_dataset,
        "model": tiny_model,
    }
    small = {
        "teacher": teacher,
        "pair_teacher": teacher,
        "clusters": 8,
        "batch": 16,
        "steps": 10,
        "document_tokens": 48,
    }
    settings = [f"{name}={value}" for name, value in (paths | small).items()]
    recipe = CHECKOUT / "examples" / "tas-balanced.toml"
    outcome = retrievo("run", recipe, "--output", tmp_path / "road", "--set", *settings)
    assert outcome.code == 0, outcome.err
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == ["compare", "test-plain", "test-tas-balanced"]
    assert "8 query clusters of " in outcome.err


@pytest.mark.slow
def test_a_recipe_killed_at_any_moment_and_run_again_ends_in_the_same_bytes(
    tmp_path: Path, toy_dataset: Path, tiny_model: Path, process: Callable
) -> None:
    recipe = lay_out(tmp_path / "home", toy_dataset, tiny_model)
    whole = tmp_path / "whole"
    took = process(["run", str(recipe), "--output", str(whole)])
    made = (
        "bm25-test.parquet",
        "negatives.parquet",
        "stage-1/model.safetensors",
        "vectors-1/shard-00000.arrow",
        "stage-1-test.parquet",
        "results.json",
    )
    rng, kills = random.Random(0), 0
    for moment in range(3):
        other = tmp_path / f"killed-{moment}"
        command = ["run", str(recipe), "--output", str(other)]
        lived = process(command, kill_after=rng.uniform(0.2, 0.98) * took)
        kills, took = kills + (lived is None), min(took, lived or took)  # a quieter machine is quicker
        process(command, kill_after=rng.uniform(0.2, 0.6) * took)
        process(command)
        for name in made:  # a table tells the fingerprint of the Lucene index, which never has the same bytes twice
            read: Callable = pq.read_table if name.endswith(".parquet") else Path.read_bytes
            assert read(other / name) == read(whole / name), name
        assert not [path for path in other.iterdir() if path.suffix in (".partial", ".scores")]
    assert kills >= 2


def test_errors_of_a_step_leave_the_steps_before_it_finished(road: Path, retrievo: Callable) -> None:
    change(road, "batch_size = 32", "batch_size = 32\ndocument_max_length = 4000")
    outcome = retrievo("run", road, "--force")
    assert outcome.code == 1
    assert "--document-max-length: 4000 tokens; expected 3 to 64 for this backbone" in outcome.err
    assert {name for name, state in said(outcome).items() if state == "finished"} == {"bm25", "bm25-test", "negatives"}
    change(road, "document_max_length = 4000", "")
    again = retrievo("run", road)
    assert again.code == 0, again.err
    assert said(again)["vectors-1"] == "finished"  # the model came out the same


def test_only_the_mistakes_of_a_person_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=r"no\.toml: no such file"):
        read_recipe(RunConfig(file=tmp_path / "no.toml"))
